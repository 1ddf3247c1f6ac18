//! Callers and requests that must be refused, at the handshake or with 400, 401, 403, 404, 405 or 413. No key is
//! made or used up.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use testkit::{Curl, Network, PATIENCE, RawClient, eventually, run_to_end};

use crate::stored::stored_keys;
use testkit::needs;

fn listeners(network: &Network) -> [String; 3] {
    [
        format!("{}/api/v1/keys/bob/enc_keys", network.site(0).sae_url),
        format!("{}/peer/v1/info", network.site(0).peer_url),
        format!("{}/pool/v1/pools", network.pool(0).url),
    ]
}

#[test]
fn without_a_certificate_of_the_chain_there_is_no_connection_at_any_listener() {
    needs!(Curl);
    let network = Network::start(2);
    let foreign = network.dir().join("foreign").display().to_string();
    run_to_end(&["pki", "init", "--trust-domain", "dqkd.example", "--dir", &foreign]);
    run_to_end(&["pki", "issue", "sae", "alice", "--dir", &foreign]);
    run_to_end(&["pki", "issue", "kme", "site-b", "--dir", &foreign]);
    let foreign = network.dir().join("foreign");
    let of = |name: &str| {
        Curl::pem(&network.ca(), &foreign.join(format!("{name}.pem")), &foreign.join(format!("{name}.key")))
    };
    for url in listeners(&network) {
        for curl in [Curl::nobody(&network.ca()), of("alice"), of("site-b")] {
            let answer = curl.get(&url);
            assert_eq!((answer.status, answer.exit != 0), (0, true), "{url}: {answer:?}");
        }
        // Nor does anybody without TLS.
        let plain = network.curl("alice").get(&url.replace("https:", "http:"));
        assert_eq!(plain.status, 0, "{plain:?}");
    }
    let log = network.daemon(0).log();
    assert!(log.contains("a connection was refused"), "{log}");
}

#[test]
fn an_expired_certificate_is_refused_at_the_handshake() {
    needs!(Curl, Faketime);
    let network = Network::start(2);
    let pki = network.pki();
    let dir = pki.display().to_string();
    // Issued two days ago for one day, under a clock that is set back.
    let mut command = std::process::Command::new("faketime");
    command.args([
        "-f",
        "-2d",
        env!("CARGO_BIN_EXE_dqkd"),
        "pki",
        "issue",
        "sae",
        "late",
        "--days",
        "1",
        "--dir",
        &dir,
    ]);
    let issued = command.output().unwrap();
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    let late = Curl::pem(&network.ca(), &pki.join("late.pem"), &pki.join("late.key"));
    let answer = late.get(&listeners(&network)[0]);
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(network.daemon(0).log().contains("certificate expired"), "{}", network.daemon(0).log());
}

#[test]
fn certificates_of_another_kind_get_no_connection_at_any_listener() {
    needs!(Curl);
    let network = Network::start(2);
    let pki = network.pki();
    let dir = pki.display().to_string();
    run_to_end(&["pki", "issue", "operator", "olga", "--dir", &dir]);
    // A stranger of the right kind: a KME of the trust domain that is not a configured peer.
    run_to_end(&["pki", "issue", "kme", "site-x", "--dir", &dir]);
    let of = |name: &str| {
        Curl::pem(&network.ca(), &pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key")))
    };
    let [sae, peer, pool] = listeners(&network);
    for (url, names) in [(&sae, ["site-b", "olga"]), (&peer, ["alice", "olga"]), (&pool, ["alice", "olga"])] {
        for name in names {
            let answer = of(name).get(url);
            assert_eq!((answer.status, answer.exit != 0), (0, true), "{name} at {url}: {answer:?}");
        }
    }
    for (log, told) in [
        (network.daemon(0).log(), "the certificate names KME site-b; this listener takes only the kind SAE"),
        (network.daemon(0).log(), "the certificate names SAE alice; this listener takes only the kind KME"),
    ] {
        assert!(log.contains(told), "{log}");
    }
    let stranger = of("site-x").get(&peer);
    assert_eq!(stranger.status, 403, "{stranger:?}");
    assert!(stranger.message().contains("site-x is not a configured peer"), "{stranger:?}");
}

/// It keeps a connection busy, and acknowledges nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_sae_loses_its_open_connection_soon_after_the_new_list_is_there() {
    let network = Network::start(2);
    let pki = network.pki();
    let file = |name: &str| pki.join(name);
    let alice = RawClient::new(&network.ca(), &file("alice.pem"), &file("alice.key"));
    let at = network.site(0).sae_url.trim_start_matches("https://").parse().unwrap();
    let mut h2 = alice.h2(at).await.unwrap();
    let status = h2.get("/api/v1/keys/bob/status").await.unwrap();
    assert_eq!(h2.answer(status).await.unwrap().status, 200);
    h2.withholds_acks = true;
    let open = h2.post_head("/api/v1/keys/bob/enc_keys", 1000).await.unwrap();
    let dir = pki.display().to_string();
    run_to_end(&["pki", "revoke", "sae", "alice", "--dir", &dir]);
    let revoked = Instant::now();
    let clinging = async {
        while h2.data(open, b" ", false).await.is_ok() {
            let pause = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                () = pause => {}
                frame = h2.next() => if frame.is_err() { return },
            }
        }
    };
    tokio::time::timeout(PATIENCE, clinging).await.expect("the connection was kept");
    let secs = revoked.elapsed().as_secs_f64();
    assert!(secs < 15.0, "{secs} s");
    let log = || network.daemon(0).log();
    eventually("the log names it", || {
        log().lines().any(|line| line.contains("a connection was cut") && line.contains("caller=\"alice\""))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_in_a_loop_writes_few_lines_and_all_are_counted() {
    const TIMES: usize = 200;
    needs!(Curl);
    let network = Network::start(2);
    let pki = network.pki();
    let dir = pki.display().to_string();
    run_to_end(&["pki", "issue", "sae", "mallory", "--dir", &dir]);
    let of = |name: &str| {
        RawClient::new(&network.ca(), &pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key")))
    };
    let site = network.site(0);
    let at = |url: &str| url.trim_start_matches("https://").parse().unwrap();
    // At the listener for KMEs, and with requests that name nobody.
    let mut h2 = of("alice").h2(at(&site.sae_url)).await.unwrap();
    for _ in 0..TIMES {
        let _ = of("mallory").tls(at(&site.peer_url), "h2").await;
        let asked = h2.get("/api/v1/keys/nobody/status").await.unwrap();
        assert_eq!(h2.answer(asked).await.unwrap().status, 400);
    }
    let metrics = || Curl::nobody(&network.ca()).get(&format!("{}/metrics", site.admin_url)).body;
    let counted = "dqkd_refused_connections_total{listener=\"peer\",reason=\"identity\"} 200";
    eventually("all are counted", || metrics().contains(counted));
    let log = network.daemon(0).log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!((lines("mallory"), lines("request refused")), (5, 5), "{log}");
}

#[test]
fn an_sae_of_another_site_is_not_served_here() {
    needs!(Curl);
    let network = Network::start(2);
    let url = format!("{}/api/v1/keys/alice/enc_keys", network.site(0).sae_url);
    assert_eq!(network.curl("bob").get(&url).status, 401);
}

/// An SAE of the chain that is in no directory: its certificate as files of the network's authority.
fn unlisted(network: &Network, name: &str) -> Curl {
    let pki = network.pki();
    run_to_end(&["pki", "issue", "sae", name, "--dir", &pki.display().to_string()]);
    Curl::pem(&network.ca(), &pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key")))
}

#[test]
fn with_chain_admission_a_peer_still_speaks_only_for_masters_that_are_listed_at_its_site() {
    needs!(Curl);
    let mut network = Network::generate(2);
    let domain = "trust_domain = \"dqkd.example\"";
    for site in 0..2 {
        network.configure(site, domain, &format!("{domain}\nsae_admission = \"chain\""));
    }
    network.start_pools(3);
    network.start_sites();
    let zoe = unlisted(&network, "zoe");
    let url = format!("{}/api/v1/keys/bob/enc_keys", network.site(0).sae_url);
    // Site A admits her, but site B cannot know that she belongs to site A.
    let answer = zoe.get(&url);
    assert_eq!(answer.status, 503, "{answer:?}");
    let log = network.daemon(0).log();
    assert!(log.contains("SAE zoe is not listed here: add it to [[sae]] of this site"), "{log}");
    assert_eq!(stored_keys(&network.database(1)), 0);
    // Listed at site B as an SAE of site B, she is still no SAE that site A may speak for.
    let first = "[[sae]]";
    let listed = |kme: &str| format!("[[sae]]\nid = \"zoe\"\nkme = \"{kme}\"\n\n[[sae]]");
    network.configure(1, first, &listed("site-b"));
    eventually("site B has read its directory", || {
        let answer = zoe.get(&url);
        assert_eq!(answer.status, 503, "{answer:?}");
        network.daemon(0).log().contains("SAE zoe lives at KME site-b, not at site-a")
    });
    network.configure(1, &listed("site-b"), &listed("site-a"));
    eventually("site B has read its directory", || zoe.get(&url).status == 200);
}

#[test]
fn bad_requests_are_400_with_a_message_and_nothing_is_made_or_used_up() {
    needs!(Curl);
    let network = Network::start(2);
    let (id, key) = network.enc("alice", "bob", "").key();
    let (site, _) = network.sae("alice");
    let enc = format!("{}/api/v1/keys/bob/enc_keys", site.sae_url);
    let ready = || network.status("alice", "bob")["stored_key_count"].as_u64().unwrap();
    // The reserve is full, and nothing below takes enough to start a refill.
    eventually("the reserve is full", || ready() >= 64);
    let before = ready();
    for query in [
        "?number=0",
        "?number=129",
        "?number=x",
        "?size=7",
        "?size=12",
        "?size=65544",
        "?size=0",
        "?number=-1",
    ] {
        let answer = network.enc("alice", "bob", query);
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(!answer.message().is_empty());
    }
    assert_eq!(network.enc("alice", "bob", "?size=12").message(), "size shall be a multiple of 8");
    for slave in ["nobody", "alice", "%00", "a%0ab"] {
        let answer = network.enc("alice", slave, "");
        assert_eq!(answer.status, 400, "{slave}: {answer:?}");
    }
    let mandatory = json!({"extension_mandatory": [{"acme_x": 1}]});
    for body in [
        "{",
        "[]",
        "null",
        "\"x\"",
        "{\"number\": \"2\"}",
        "{\"size\": 8.5}",
        "{\"number\": 1e2}",
        "{\"additional_slave_SAE_IDs\": \"bob\"}",
        "{\"additional_slave_SAE_IDs\": [\"nobody\"]}",
        "{\"additional_slave_SAE_IDs\": [\"bob\"]}",
        "{} trailing",
        &mandatory.to_string(),
    ] {
        let answer = network.curl("alice").post(&enc, body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(!answer.message().is_empty());
    }
    let dec = format!("{}/api/v1/keys/alice/dec_keys", network.site(1).sae_url);
    for body in [
        "{",
        "[]",
        "{}",
        "{\"key_IDs\": []}",
        "{\"key_IDs\": [{}]}",
        "{\"key_IDs\": [{\"key_ID\": \"x\"}]}",
        "",
    ] {
        let answer = network.curl("bob").post(&dec, body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    // All or nothing: one unknown ID keeps the known key where it is.
    let unknown = "00000000-0000-4000-8000-000000000000";
    assert_eq!(network.dec("bob", "alice", &[&id, unknown]).status, 400);
    assert_eq!(network.dec("bob", "alice", &[&id, &id]).status, 400);
    assert!(ready() >= before, "no key was used up");
    assert_eq!(network.dec("bob", "alice", &[&id]).key(), (id, key));
}

#[test]
fn other_paths_verbs_and_types_get_json_errors() {
    needs!(Curl);
    let network = Network::start(2);
    let (site, _) = network.sae("alice");
    let alice = network.curl("alice");
    let enc = format!("{}/api/v1/keys/bob/enc_keys", site.sae_url);
    for (args, status) in
        [(vec!["-X", "DELETE", &enc], 405), (vec!["-H", "Content-Type: text/plain", "-d", "{}", &enc], 415)]
    {
        let answer = alice.call(&args);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!answer.message().is_empty());
    }
    for path in ["/", "/api/v1/keys/bob", "/api/v2/keys/bob/status", "/peer/v1/info", "/healthz"] {
        let answer = alice.get(&format!("{}{path}", site.sae_url));
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(!answer.message().is_empty());
    }
}

#[test]
fn what_is_no_http_has_no_handler_and_no_keys() {
    needs!(Curl);
    let network = Network::start(2);
    let alice = network.curl("alice").and(&["--http1.1"]);
    let enc = format!("{}/api/v1/keys/bob/enc_keys", network.site(0).sae_url);
    let fields: Vec<String> = (0..100).flat_map(|n| ["-H".to_owned(), format!("x{n}: y")]).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let large = format!("x: {}", "y".repeat(40 << 10));
    for (args, status) in [
        (&["-X", "GET GET", &enc][..], 400),
        (&["-H", "Content-Length: x", "-d", "{}", &enc], 400),
        (&[&fields[..], &[enc.as_str()]].concat(), 431),
        (&["-H", &large, &enc], 431),
    ] {
        let answer = alice.call(args);
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{answer:?}");
    }
    assert_eq!(
        (stored_keys(&network.database(0)), stored_keys(&network.database(1))),
        (0, 0),
        "nothing was made"
    );
    // Other connections are served as before.
    network.enc("alice", "bob", "").key();
}

#[test]
fn a_body_that_is_too_large_is_413_at_every_listener() {
    needs!(Curl);
    let network = Network::start(2);
    let file = network.dir().join("large");
    std::fs::write(&file, format!("{{\"x\": \"{}\"}}", "y".repeat(2 << 20))).unwrap();
    let data = format!("@{}", file.display());
    let args =
        |url: &str| ["-H", "Content-Type: application/json", "--data-binary", &data, url].map(str::to_owned);
    let pki = network.pki();
    let kme = Curl::pem(&network.ca(), &pki.join("site-b.pem"), &pki.join("site-b.key"));
    let [sae, _, pool] = listeners(&network);
    let batches = format!("{}/peer/v1/batches", network.site(0).peer_url);
    for (curl, url) in [(&network.curl("alice"), sae), (&kme, batches), (&kme, pool)] {
        let args = args(&url);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answer = curl.call(&args);
        assert_eq!(answer.status, 413, "{url}: {answer:?}");
    }
}

/// The metadata of a batch as a peer could forge it.
pub(crate) fn forged(network: &Network) -> Value {
    let id = |n: u8| format!("{n:08x}-0000-4000-8000-000000000000");
    let now = time::OffsetDateTime::now_utc();
    let text =
        |moment: time::OffsetDateTime| moment.format(&time::format_description::well_known::Rfc3339).unwrap();
    json!({
        "batch_id": id(1), "suite": "dqkd-blast-1",
        "pool_set": {
            "id": id(2), "words": 131_072, "expires_at": text(now + time::Duration::minutes(5)),
            "pools": [
                {"server": network.pool(0).id, "id": id(3)},
                {"server": network.pool(1).id, "id": id(4)},
                {"server": network.pool(2).id, "id": id(6)},
            ],
        },
        "seed": "00".repeat(32), "mask_seed": "11".repeat(32), "words_per_pool": 180, "key_bytes": 32,
        "key_ids": [id(5)], "master": "bob", "recipients": [
            {"party": {"kind": "sae", "id": "alice"}, "kme": "site-a"}],
        "created_at": text(now), "expires_at": text(now + time::Duration::hours(1)),
        "confirm": "22".repeat(16),
    })
}

#[test]
fn forged_metadata_is_refused_with_the_rule_it_breaks() {
    needs!(Curl);
    let network = Network::start(2);
    let pki = network.pki();
    let site_b = Curl::pem(&network.ca(), &pki.join("site-b.pem"), &pki.join("site-b.key"));
    let url = format!("{}/peer/v1/batches", network.site(0).peer_url);
    let push = |change: &dyn Fn(&mut Value)| {
        let mut batch = forged(&network);
        change(&mut batch);
        let answer = site_b.post(&url, &batch.to_string());
        (answer.status, answer.message())
    };
    let refused = |status: u16, part: &str, change: &dyn Fn(&mut Value)| {
        let (got, message) = push(change);
        assert!(got == status && message.contains(part), "{part}: {got} {message}");
    };
    // Everything is right except the pools, which do not exist.
    refused(424, "pools of the set cannot be downloaded", &|_| {});
    refused(422, "suite is unknown", &|b| b["suite"] = json!("dqkd-blast-0"));
    refused(422, "keys of 0 bits", &|b| b["key_bytes"] = json!(0));
    refused(422, "keys of 80000 bits", &|b| b["key_bytes"] = json!(10_000));
    refused(422, "a batch has 1 to 64", &|b| b["key_ids"] = json!([]));
    refused(422, "the clocks differ", &|b| b["created_at"] = json!("2020-01-01T00:00:00Z"));
    refused(422, "expired", &|b| b["expires_at"] = b["created_at"].clone());
    refused(422, "they may live 86400 s", &|b| b["expires_at"] = json!("2099-01-01T00:00:00Z"));
    refused(403, "SAE alice lives at KME site-a", &|b| b["master"] = json!("alice"));
    refused(403, "is a KME", &|b| b["master"] = json!("site-b"));
    let recipients = |parties: Value| move |b: &mut Value| b["recipients"] = parties.clone();
    let sae = |id: &str, kme: &str| json!({"party": {"kind": "sae", "id": id}, "kme": kme});
    refused(422, "1 to 9 recipients", &recipients(json!([])));
    refused(422, "no recipient lives", &recipients(json!([sae("zoe", "site-z")])));
    refused(422, "SAE zoe is not known", &recipients(json!([sae("zoe", "site-a")])));
    refused(422, "lives at KME site-b", &recipients(json!([sae("carol", "site-a")])));
    refused(422, "named twice", &recipients(json!([sae("alice", "site-a"), sae("alice", "site-a")])));
    refused(422, "the master is among", &recipients(json!([sae("bob", "site-b")])));
    refused(422, "not configured here", &|b| b["pool_set"]["pools"][0]["server"] = json!("evil"));
    refused(422, "this site accepts keys of 3 or more", &|b| {
        b["pool_set"]["pools"].as_array_mut().unwrap().truncate(2);
    });
    refused(422, "distinct", &|b| b["pool_set"]["pools"][1] = b["pool_set"]["pools"][0].clone());
    refused(422, "larger", &|b| b["pool_set"]["words"] = json!(1 << 27));
    refused(422, "longer than this site allows", &|b| {
        b["pool_set"]["expires_at"] = json!("2099-01-01T00:00:00Z");
    });
    refused(400, "unexpected shape", &|b| b["seed"] = json!("00"));
    refused(400, "unexpected shape", &|b| b["recipients"] = json!(7));
    // The refused pushes left nothing that alice could retrieve.
    assert_eq!(network.dec("alice", "bob", &["00000005-0000-4000-8000-000000000000"]).status, 400);
}
