//! Clauses 5.4 and 6.4: who may retrieve what, how often, and that a refusal costs nothing.

use super::*;

const DEC: &str = "/api/v1/keys/bob/dec_keys";
const ALICE: As = As::Sae("alice");
const DAVE: As = As::Sae("dave");
const NOT_FOUND: &str = "one or more keys specified are not found on KME";

fn ask(ids: &[KeyId]) -> String {
    let ids: Vec<Value> = ids.iter().map(|id| json!({ "key_ID": id.to_string() })).collect();
    json!({ "key_IDs": ids }).to_string()
}

#[tokio::test]
async fn keys_come_in_the_order_asked_once() {
    let world = World::new().await;
    let (one, two) = (world.stored(&[sae("alice")]).await, world.stored(&[sae("alice")]).await);
    let reply = world.post(ALICE, DEC, &ask(&[two, one])).await;
    assert_eq!((reply.status, reply.body), (StatusCode::OK, json!({"keys": [key_of(two), key_of(one)]})));
    let again = world.post(ALICE, DEC, &ask(&[one])).await;
    assert_eq!((again.status, again.message()), (StatusCode::BAD_REQUEST, NOT_FOUND));
}

#[tokio::test]
async fn sloppy_requests_are_served() {
    let world = World::new().await;
    for form in [
        r#"{"key_IDs": [{"key_ID": "ID", "key_ID_extension": {"x": 1}}], "key_IDs_extension": {}}"#,
        r#"{"key_IDs": [{"key_ID": "ID", "key_ID_extension": null}], "key_IDs_extension": null, "more": 1}"#,
        r#"{"key_IDs": [{"key_ID": "ID", "other": "x"}]}"#,
    ] {
        let id = world.stored(&[sae("alice")]).await;
        let body = form.replace("ID\"", &format!("{}\"", id.to_string().to_uppercase()));
        let body = body.replace(&format!("key_{}", id.to_string().to_uppercase()), "key_ID");
        let reply = world.post(ALICE, DEC, &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{body}: {}", reply.body);
    }
    let id = world.stored(&[sae("alice")]).await;
    let reply = world.get(ALICE, &format!("{DEC}/?x=1&key_ID={id}")).await;
    assert_eq!((reply.status, reply.body), (StatusCode::OK, json!({"keys": [key_of(id)]})));
}

/// R50, A1, A6, A7, A25: every kind of caller, path and addressing.
#[tokio::test]
async fn who_may_retrieve_what() {
    let cases: &[(As, &str, Party, u16)] = &[
        // Addressed to one SAE: only it, naming the master or the master's KME.
        (ALICE, "bob", sae("alice"), 200),
        (ALICE, "site-b", sae("alice"), 200),
        (DAVE, "bob", sae("alice"), 401),
        (As::Sae("stranger"), "bob", sae("alice"), 401),
        // The right key under the wrong name does not exist.
        (ALICE, "carol", sae("alice"), 400),
        (ALICE, "site-c", sae("alice"), 400),
        (ALICE, "site-a", sae("alice"), 400),
        (ALICE, "nobody", sae("alice"), 400),
        (ALICE, "alice", sae("alice"), 400),
        // Addressed to the site: any SAE that it admits.
        (ALICE, "bob", here(), 200),
        (DAVE, "site-b", here(), 200),
        (As::Sae("stranger"), "bob", here(), 200),
        // Not an SAE of this site, or no SAE at all.
        (As::Sae("bob"), "alice", sae("alice"), 401),
        (As::Sae("erin"), "bob", here(), 401),
        (As::Kme("site-b"), "bob", here(), 401),
        (As::Operator, "bob", here(), 401),
        (As::Nobody, "bob", here(), 401),
        (As::Sae("site-a"), "bob", here(), 401),
    ];
    let world = World::new().await;
    for (caller, path, party, status) in cases {
        let id = world.stored(std::slice::from_ref(party)).await;
        let url = format!("/api/v1/keys/{path}/dec_keys");
        let reply = world.post(*caller, &url, &ask(&[id])).await;
        assert_eq!(reply.status.as_u16(), *status, "{caller:?} {path} {party:?}: {}", reply.body);
        if *status == 401 {
            assert_eq!(reply.message(), "Unauthorized");
        }
        // Whatever was refused is still there for whom it is meant.
        if *status != 200 {
            let rightful = world.post(ALICE, DEC, &ask(&[id])).await;
            assert_eq!(rightful.status, StatusCode::OK, "{caller:?} {path} {party:?} used it up");
        }
    }
}

#[tokio::test]
async fn listed_admission_refuses_strangers() {
    let world = World::with(DeliveryRules { admission: Admission::Listed, ..rules() }).await;
    let id = world.stored(&[here()]).await;
    assert_eq!(world.post(As::Sae("stranger"), DEC, &ask(&[id])).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        world.get(As::Sae("stranger"), "/api/v1/keys/bob/status").await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(world.post(DAVE, DEC, &ask(&[id])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn each_named_party_holds_one_retrieval() {
    let world = World::new().await;
    let id = world.stored(&[sae("alice"), sae("dave")]).await;
    for caller in [ALICE, DAVE] {
        assert_eq!(world.post(caller, DEC, &ask(&[id])).await.status, StatusCode::OK);
        assert_eq!(world.post(caller, DEC, &ask(&[id])).await.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn all_or_nothing_and_a_foreign_key_decides() {
    let world = World::new().await;
    let mine = world.stored(&[sae("alice")]).await;
    let foreign = world.stored(&[sae("dave")]).await;
    let unknown = KeyId::draw(&OsRandom).unwrap();
    let expired = world.stored_until(&[sae("alice")], world.clock.now().plus(Duration::from_secs(1))).await;
    world.clock.advance(Duration::from_secs(2));
    for (ids, status) in [
        (vec![mine, unknown], 400),
        (vec![mine, expired], 400),
        (vec![mine, foreign], 401),
        (vec![unknown, foreign], 401),
        (vec![mine, mine], 400),
    ] {
        let reply = world.post(ALICE, DEC, &ask(&ids)).await;
        assert_eq!(reply.status.as_u16(), status, "{}", reply.body);
    }
    assert_eq!(world.post(ALICE, DEC, &ask(&[mine])).await.status, StatusCode::OK);
    assert_eq!(world.post(DAVE, DEC, &ask(&[foreign])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn malformed_requests_never_yield_a_key() {
    let world = World::new().await;
    let id = world.stored(&[sae("alice")]).await;
    let text = id.to_string();
    for body in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        format!("[{{\"key_ID\": \"{text}\"}}]"),
        "{\"key_IDs\": []}".to_owned(),
        "{\"key_IDs\": null}".to_owned(),
        "{\"key_IDs\": [{}]}".to_owned(),
        "{\"key_IDs\": [null]}".to_owned(),
        format!("{{\"key_IDs\": [\"{text}\"]}}"),
        format!("{{\"key_IDs\": {{\"key_ID\": \"{text}\"}}}}"),
        format!("{{\"key_IDs\": [{{\"key_id\": \"{text}\"}}]}}"),
        format!("{{\"key_IDs\": [{{\"key_ID\": \"{text}\"}}]"),
        format!("{{\"key_IDs\": [{{\"key_ID\": \"{}\"}}]}}", text.replace('-', "")),
        format!("{{\"key_IDs\": [{{\"key_ID\": \"{text} \"}}]}}"),
        format!("{{\"key_IDs\": [{{\"key_ID\": \"{{{text}}}\"}}]}}"),
        ask(&(0..11).map(|_| KeyId::draw(&OsRandom).unwrap()).collect::<Vec<_>>()),
    ] {
        let reply = world.post(ALICE, DEC, &body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(!reply.message().is_empty());
    }
    for query in ["", "?key_ID=", "?key_ID=x", "?key_id=ID", "?key_ID=ID&key_ID=ID"] {
        let url = format!("{DEC}{}", query.replace("=ID", &format!("={text}")));
        assert_eq!(world.get(ALICE, &url).await.status, StatusCode::BAD_REQUEST, "{url}");
    }
    assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_replay_window_serves_the_same_sae_again_and_until_expiry_serves_always() {
    let window = RetrievalPolicy { mode: RetrievalMode::Once, replay_window: Duration::from_secs(10) };
    let world = World::with(DeliveryRules { retrieval: window, ..rules() }).await;
    let id = world.stored(&[here()]).await;
    assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::OK);
    assert_eq!(world.post(DAVE, DEC, &ask(&[id])).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::OK);
    world.clock.advance(Duration::from_secs(11));
    assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::BAD_REQUEST);

    let always = RetrievalPolicy { mode: RetrievalMode::UntilExpiry, ..RetrievalPolicy::STRICT };
    let world = World::with(DeliveryRules { retrieval: always, ..rules() }).await;
    let id = world.stored(&[sae("alice")]).await;
    for _ in 0..3 {
        assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::OK);
    }
    world.clock.advance(HOUR);
    assert_eq!(world.post(ALICE, DEC, &ask(&[id])).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_store_that_is_closed_is_a_503() {
    let world = World::new().await;
    let id = world.stored(&[sae("alice")]).await;
    world.store.close().await;
    let reply = world.post(ALICE, DEC, &ask(&[id])).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
}
