//! Who is served: clauses 4, 5.1.

use kme::Admission;
use mtls::identity::IdentityError;

use super::*;

/// One request of each kind that would be served to the right caller.
fn calls(id: &str) -> [Request<Body>; 5] {
    let key_ids = format!(r#"{{"key_IDs":[{{"key_ID":"{id}"}}]}}"#);
    [
        Request::get("/api/v1/keys/bob/status").body(Body::empty()).unwrap(),
        Request::get("/api/v1/keys/bob/enc_keys").body(Body::empty()).unwrap(),
        Request::post("/api/v1/keys/bob/enc_keys").body(Body::empty()).unwrap(),
        Request::get(format!("/api/v1/keys/bob/dec_keys?key_ID={id}")).body(Body::empty()).unwrap(),
        Request::post("/api/v1/keys/bob/dec_keys").body(Body::from(key_ids)).unwrap(),
    ]
}

#[tokio::test]
async fn whoever_is_not_an_admitted_sae_gets_401_everywhere_and_nothing_happens() {
    let sae = |id: &str| Some(ClientIdentity::new(Ok(Identity::Sae(testkit::authenticated_sae(id)))));
    let kme = Identity::Kme(testkit::authenticated_kme("site-b"));
    let everywhere = [
        ("no identity", None),
        ("no certificate", Some(ClientIdentity::none())),
        ("nameless", Some(ClientIdentity::new(Err(IdentityError::Nameless)))),
        ("a KME", Some(ClientIdentity::new(Ok(kme)))),
        ("a pool server", Some(ClientIdentity::new(Ok(Identity::Pool("pool-1".parse().unwrap()))))),
        ("an operator", Some(ClientIdentity::new(Ok(Identity::Operator("olga".into()))))),
        ("an SAE of another site", sae("bob")),
        ("an SAE of a site that is away", sae("erin")),
        ("an SAE named like this KME", sae("site-a")),
        ("an SAE named like another KME", sae("site-b")),
    ];
    let unlisted = ("an unlisted SAE", sae("zoe"));
    for admission in [Admission::Chain, Admission::Listed] {
        let net = Net::with(DeliveryRules { admission, ..rules() }).await;
        let made = net.enc(1).await;
        let before = net.marks().await;
        let mut callers = everywhere.to_vec();
        if admission == Admission::Listed {
            callers.push(unlisted.clone());
        }
        for (who, identity) in callers {
            for mut request in calls(&made[0].0) {
                if let Some(identity) = identity.clone() {
                    request.extensions_mut().insert(identity);
                }
                let what = format!("{admission:?}: {who}: {} {}", request.method(), request.uri());
                let answer = answer(&net.a, request).await;
                assert_eq!(
                    (answer.status, answer.message().as_str()),
                    (StatusCode::UNAUTHORIZED, "Unauthorized"),
                    "{what}"
                );
            }
        }
        assert_eq!(net.marks().await, before, "nothing was made or used up");
        assert_eq!(net.dec("alice", "bob", &[&made[0].0]).await.keys(), made);
    }
}

#[tokio::test]
async fn headers_cannot_claim_another_sae() {
    let net = Net::new().await;
    let mut request = Request::get("/api/v1/keys/bob/status");
    for name in ["X-SAE-ID", "Authorization", "X-Forwarded-Client-Cert", "X-SSL-Client-S-DN", "From"] {
        request = request.header(name, "dave");
    }
    assert_eq!(net.call("alice", request, Body::empty()).await.json()["master_SAE_ID"], "alice");
}

#[tokio::test]
async fn with_chain_admission_an_unlisted_sae_is_served() {
    let net = Net::new().await;
    let made = net.get("zoe", "bob/enc_keys").await.keys();
    assert_eq!(net.dec("bob", "zoe", &[&made[0].0]).await.keys(), made);
}
