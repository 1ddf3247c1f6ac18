//! Who may do what: checks every caller, path, form of address and mode of retrieval against a second,
//! independent statement of the rules (docs/etsi-014.md; ETSI GS QKD 014, clauses 5.1 and 5.4).

use kme::{Admission, RetrievalMode};

use super::*;
use crate::delivery::RetrievalPolicy;
use crate::store::testing::counts;

/// Somebody who calls at one of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Sae(&'static str),
    Kme(&'static str),
    Operator,
    Pool,
    Nobody,
}

const B_O_B: &str = "b/o b%é";
const CALLERS: &[Who] = &[
    Who::Sae("alice"),
    Who::Sae("dave"),
    Who::Sae("bob"),
    Who::Sae("carol"),
    Who::Sae(B_O_B),
    Who::Sae("erin"),
    Who::Sae("zoe"),
    Who::Sae("site-b"),
    Who::Kme("site-a"),
    Who::Kme("site-b"),
    Who::Operator,
    Who::Pool,
    Who::Nobody,
];
const PATHS: &[&str] =
    &["alice", "dave", "bob", "carol", B_O_B, "erin", "zoe", "site-a", "site-b", "site-c", "nobody"];

/// Whom alice's key is for.
#[derive(Clone, Copy, Debug)]
struct Address {
    path: &'static str,
    additional: &'static [&'static str],
}

const ADDRESSES: &[Address] = &[
    Address { path: "bob", additional: &[] },
    Address { path: "site-b", additional: &[] },
    Address { path: "bob", additional: &["carol"] },
    Address { path: "site-b", additional: &["dave"] },
];

fn home(sae: &str) -> Option<&'static str> {
    match sae {
        "alice" | "dave" => Some("site-a"),
        "bob" | "carol" | B_O_B => Some("site-b"),
        "erin" => Some("site-c"),
        _ => None,
    }
}

fn is_kme(id: &str) -> bool {
    ["site-a", "site-b", "site-c"].contains(&id)
}

/// The SAE, if this site serves the caller at all.
fn admitted(who: Who, site: &str, admission: Admission) -> Option<&'static str> {
    let Who::Sae(sae) = who else { return None };
    let served = match home(sae) {
        Some(home) => home == site,
        None => admission == Admission::Chain && !is_kme(sae),
    };
    served.then_some(sae)
}

/// The status of `dec_keys` for a key that alice addressed to `to` and nobody retrieved.
fn expected_of_dec(who: Who, site: &str, path: &str, to: Address, admission: Admission) -> StatusCode {
    let Some(sae) = admitted(who, site, admission) else { return StatusCode::UNAUTHORIZED };
    if path == sae {
        return StatusCode::BAD_REQUEST;
    }
    let is_master = sae == "alice";
    let for_site = is_kme(to.path) && to.path == site;
    if !is_master && !for_site && to.path != sae && !to.additional.contains(&sae) {
        return StatusCode::UNAUTHORIZED;
    }
    let others: Vec<&str> = if is_master {
        let named = [to.path].into_iter().chain(to.additional.iter().copied());
        named.flat_map(|id| [id, home(id).unwrap_or(id)]).collect()
    } else {
        vec!["alice", "site-a"]
    };
    if others.contains(&path) { StatusCode::OK } else { StatusCode::BAD_REQUEST }
}

fn identity(who: Who) -> ClientIdentity {
    match who {
        Who::Sae(id) => ClientIdentity::new(Ok(Identity::Sae(testkit::authenticated_sae(id)))),
        Who::Kme(id) => ClientIdentity::new(Ok(Identity::Kme(testkit::authenticated_kme(id)))),
        Who::Operator => ClientIdentity::new(Ok(Identity::Operator("olga".into()))),
        Who::Pool => ClientIdentity::new(Ok(Identity::Pool("pool-1".parse().unwrap()))),
        Who::Nobody => ClientIdentity::none(),
    }
}

async fn ask(net: &Net, who: Who, site: &str, request: http::request::Builder) -> TestAnswer {
    let api = if site == "site-a" { &net.a } else { &net.b };
    answer(api, request.extension(identity(who)).body(Body::empty()).unwrap()).await
}

fn dec(path: &str, key_id: &str) -> http::request::Builder {
    Request::get(format!("/api/v1/keys/{}/dec_keys?key_ID={key_id}", escaped(path)))
}

async fn ask_by_post(net: &Net, who: Who, site: &str, path: &str, key_id: &str) -> TestAnswer {
    let api = if site == "site-a" { &net.a } else { &net.b };
    let request = Request::post(format!("/api/v1/keys/{}/dec_keys", escaped(path)));
    let body = serde_json::json!({ "key_IDs": [{ "key_ID": key_id }] }).to_string();
    answer(api, request.extension(identity(who)).body(Body::from(body)).unwrap()).await
}

/// Keys of alice for `to`.
async fn made(net: &Net, to: Address, number: usize) -> Vec<(String, Vec<u8>)> {
    let body = serde_json::json!({ "number": number, "additional_slave_SAE_IDs": to.additional });
    net.post("alice", &format!("{}/enc_keys", to.path), body.to_string()).await.keys()
}

async fn check_retrievals(retrieval: RetrievalPolicy, admission: Admission) {
    let net = Net::with(DeliveryRules { admission, retrieval, ..rules() }).await;
    let again_allowed = retrieval != RetrievalPolicy::STRICT;
    for &to in ADDRESSES {
        let mut spare = Vec::new();
        for &who in CALLERS {
            for site in ["site-a", "site-b"] {
                for &path in PATHS {
                    let what = format!("{retrieval:?} {admission:?} {to:?}: {who:?} at {site}, path {path}");
                    if spare.is_empty() {
                        spare = made(&net, to, 8).await;
                    }
                    let mut key = spare.pop().unwrap();
                    let expected = expected_of_dec(who, site, path, to, admission);
                    let mut answer = ask_by_post(&net, who, site, path, &key.0).await;
                    assert_eq!(answer.status, expected, "{what}, by POST");
                    if expected == StatusCode::OK {
                        assert_eq!(answer.keys(), std::slice::from_ref(&key), "{what}, by POST");
                        // A new key for the GET: the POST used up the first.
                        key = made(&net, to, 1).await.pop().unwrap();
                    }
                    answer = ask(&net, who, site, dec(path, &key.0)).await;
                    assert_eq!(answer.status, expected, "{what}");
                    if expected == StatusCode::OK {
                        assert_eq!(answer.keys(), std::slice::from_ref(&key), "{what}");
                        let second = ask(&net, who, site, dec(path, &key.0)).await.status;
                        let expected = if again_allowed { StatusCode::OK } else { StatusCode::BAD_REQUEST };
                        assert_eq!(second, expected, "{what}, again");
                    } else {
                        answer.message();
                        spare.push(key);
                    }
                }
            }
        }
        // The refusals above used up nothing.
        for key in spare {
            let owner = Who::Sae(if is_kme(to.path) { B_O_B } else { "bob" });
            assert_eq!(
                ask(&net, owner, "site-b", dec("alice", &key.0)).await.keys(),
                std::slice::from_ref(&key)
            );
            assert_eq!(ask(&net, Who::Sae("alice"), "site-a", dec(to.path, &key.0)).await.keys(), [key]);
        }
    }
}

#[tokio::test]
async fn retrievals_follow_the_rules_for_every_caller_path_and_address() {
    check_retrievals(RetrievalPolicy::STRICT, Admission::Chain).await;
    check_retrievals(RetrievalPolicy::STRICT, Admission::Listed).await;
}

#[tokio::test]
async fn relaxed_modes_change_how_often_and_not_who() {
    let until_expiry = RetrievalPolicy { mode: RetrievalMode::UntilExpiry, replay_window: Duration::ZERO };
    check_retrievals(until_expiry, Admission::Chain).await;
    let replay = RetrievalPolicy { mode: RetrievalMode::Once, replay_window: Duration::from_secs(30) };
    check_retrievals(replay, Admission::Chain).await;
}

#[tokio::test]
async fn a_key_for_a_site_goes_to_whoever_of_it_comes_first() {
    let net = Net::new().await;
    let everyone = [Who::Sae("bob"), Who::Sae("carol"), Who::Sae(B_O_B), Who::Sae("zoe")];
    for first in everyone {
        let key = made(&net, Address { path: "site-b", additional: &[] }, 1).await.pop().unwrap();
        assert_eq!(
            ask(&net, first, "site-b", dec("site-a", &key.0)).await.keys(),
            std::slice::from_ref(&key)
        );
        assert_eq!(counts(&net.sites.b.store).await.keys, 0, "one retrieval erases it");
        for who in everyone {
            let late = ask(&net, who, "site-b", dec("alice", &key.0)).await;
            assert_eq!(late.message(), NOT_FOUND, "{who:?} after {first:?}");
        }
    }
}

#[tokio::test]
async fn status_and_fresh_keys_are_for_admitted_saes_and_about_somebody_else() {
    for admission in [Admission::Chain, Admission::Listed] {
        let net = Net::with(DeliveryRules { admission, ..rules() }).await;
        for &who in CALLERS {
            for site in ["site-a", "site-b"] {
                for &path in PATHS {
                    let sae = admitted(who, site, admission);
                    let expected = match sae {
                        None => StatusCode::UNAUTHORIZED,
                        Some(sae) if sae == path => StatusCode::BAD_REQUEST,
                        Some(_) if home(path).is_some() || is_kme(path) => StatusCode::OK,
                        Some(_) => StatusCode::BAD_REQUEST,
                    };
                    let url = |call: &str| format!("/api/v1/keys/{}/{call}", escaped(path));
                    for request in [
                        Request::get(url("status")),
                        Request::get(url("enc_keys")),
                        Request::post(url("enc_keys")),
                    ] {
                        let answer = ask(&net, who, site, request).await;
                        assert_eq!(answer.status, expected, "{admission:?} {who:?} at {site}, path {path}");
                        if expected != StatusCode::OK {
                            answer.message();
                        }
                    }
                }
            }
        }
    }
}
