//! Clauses 5.3 and 6.2.

use super::*;

const ENC: &str = "/api/v1/keys/bob/enc_keys";
const ALICE: As = As::Sae("alice");

/// Number and bytes of the only order.
fn ordered(world: &World) -> (usize, usize) {
    let orders = std::mem::take(&mut *world.source.orders.lock().unwrap());
    assert_eq!(orders.len(), 1);
    (orders[0].2, orders[0].3)
}

#[tokio::test]
async fn any_subset_of_the_members_is_served_and_sloppy_clients_are() {
    let world = World::new().await;
    for (body, expected) in [
        ("", (1, 32)),
        ("{}", (1, 32)),
        (r#"{"number": 3}"#, (3, 32)),
        (r#"{"size": 64}"#, (1, 8)),
        (r#"{"number": 10, "size": 1024}"#, (10, 128)),
        (r#"{"number": null, "size": null, "additional_slave_SAE_IDs": null}"#, (1, 32)),
        (r#"{"additional_slave_SAE_IDs": [], "extension_mandatory": [], "extension_optional": []}"#, (1, 32)),
        (r#"{"extension_mandatory": [{}], "extension_optional": [{}]}"#, (1, 32)),
        (r#"{"extension_mandatory": null, "extension_optional": null}"#, (1, 32)),
        (r#"{"extension_optional": [{"acme_x": {"any": ["value"]}}]}"#, (1, 32)),
        (r#"{"key_size": 8, "unknown": [1]}"#, (1, 32)),
    ] {
        let reply = world.post(ALICE, ENC, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{body}: {}", reply.body);
        assert_eq!(reply.body["keys"].as_array().unwrap().len(), expected.0, "{body}");
        assert_eq!(ordered(&world), expected, "{body}");
        assert_eq!(reply.headers["cache-control"], "no-store");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    for (query, expected) in [
        ("", (1, 32)),
        ("?number=2&size=128", (2, 16)),
        ("?size=128", (1, 16)),
        ("?unknown=1&number=2", (2, 32)),
        ("/", (1, 32)),
    ] {
        let reply = world.get(ALICE, &format!("{ENC}{query}")).await;
        assert_eq!(reply.status, StatusCode::OK, "{query}: {}", reply.body);
        assert_eq!(ordered(&world), expected, "{query}");
    }
}

#[tokio::test]
async fn a_post_without_a_content_type_is_served_and_one_that_is_no_json_is_415() {
    let world = World::new().await;
    let post = |kind: Option<&str>| {
        let mut request = Request::post(ENC);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        request.body(Body::from("{}")).unwrap()
    };
    assert_eq!(world.send(ALICE, post(None)).await.status, StatusCode::OK);
    assert_eq!(world.send(ALICE, post(Some("text/xml"))).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn what_cannot_be_served_is_400_with_its_sentence_and_orders_nothing() {
    let world = World::new().await;
    for (body, message) in [
        (r#"{"size": 100}"#, "size shall be a multiple of 8"),
        (r#"{"size": 99999}"#, "size shall be a multiple of 8"),
        (r#"{"size": 56}"#, "size shall be an integer from 64 to 1024 (bits)"),
        (r#"{"size": 1032}"#, "size shall be an integer from 64 to 1024 (bits)"),
        (r#"{"size": 0}"#, "size shall be an integer from 64 to 1024 (bits)"),
        (r#"{"size": -8}"#, "size shall be an integer from 64 to 1024 (bits)"),
        (r#"{"size": 18446744073709551608}"#, "size shall be an integer from 64 to 1024 (bits)"),
        (r#"{"number": 0}"#, "number shall be an integer from 1 to 10"),
        (r#"{"number": 11}"#, "number shall be an integer from 1 to 10"),
        (r#"{"number": -1}"#, "number shall be an integer from 1 to 10"),
        (r#"{"number": "1"}"#, "number shall be an integer"),
        (r#"{"number": 1.0}"#, "number shall be an integer"),
        (r#"{"number": true}"#, "number shall be an integer"),
        (r#"{"size": [256]}"#, "size shall be an integer"),
        (r#"{"additional_slave_SAE_IDs": "carol"}"#, "additional_slave_SAE_IDs shall be an array of strings"),
        (r#"{"additional_slave_SAE_IDs": [1]}"#, "additional_slave_SAE_IDs shall be an array of strings"),
        (r#"{"additional_slave_SAE_IDs": ["x"]}"#, "additional_slave_SAE_IDs names an unknown SAE"),
        (r#"{"additional_slave_SAE_IDs": ["site-c"]}"#, "additional_slave_SAE_IDs names an unknown SAE"),
        (r#"{"additional_slave_SAE_IDs": ["alice"]}"#, "additional_slave_SAE_IDs names the caller"),
        (r#"{"additional_slave_SAE_IDs": ["bob"]}"#, "additional_slave_SAE_IDs names the SAE in the path"),
        (r#"{"additional_slave_SAE_IDs": ["dave", "dave"]}"#, "additional_slave_SAE_IDs names an SAE twice"),
        (
            r#"{"additional_slave_SAE_IDs": ["dave", "carol", "erin"]}"#,
            "additional_slave_SAE_IDs shall have at most 2 entries",
        ),
        (r#"{"extension_mandatory": {}}"#, "extension_mandatory shall be an array of objects"),
        (r#"{"extension_mandatory": ["x"]}"#, "extension_mandatory shall be an array of objects"),
        (r#"{"extension_optional": 1}"#, "extension_optional shall be an array of objects"),
        (
            r#"{"extension_mandatory": [{"acme_x": 1}]}"#,
            "not all extension_mandatory parameters are supported",
        ),
    ] {
        let reply = world.post(ALICE, ENC, body).await;
        assert_eq!((reply.status, reply.message()), (StatusCode::BAD_REQUEST, message), "{body}");
    }
    for blank in [r#"{"additional_slave_SAE_IDs": [""]}"#, "{", "[]", "null", "1", "{}x", "{\"number\":1,}"] {
        let reply = world.post(ALICE, ENC, blank).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{blank}");
        assert!(!reply.message().is_empty());
    }
    for query in ["?number=0", "?number=+1", "?number=1.0", "?number=", "?size=100", "?number=1&number=1"] {
        let reply = world.get(ALICE, &format!("{ENC}{query}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(world.orders(), 0);
}

#[tokio::test]
async fn unsupported_mandatory_extensions_are_named_without_their_values() {
    let world = World::new().await;
    let reply = world.post(ALICE, ENC, r#"{"extension_mandatory": [{"acme_x": "private"}]}"#).await;
    assert!(reply.body.to_string().contains("acme_x"));
    assert!(!reply.body.to_string().contains("private"));
}

#[tokio::test]
async fn the_path_names_an_sae_or_a_whole_kme() {
    let world = World::new().await;
    let recipients = |world: &World| world.source.orders.lock().unwrap().pop().unwrap().1;
    let at = |party: Party, site: &str| Recipient { party, kme: site.parse().unwrap() };
    world.get(ALICE, ENC).await;
    assert_eq!(recipients(&world), [at(sae("bob"), "site-b")]);
    world.get(ALICE, "/api/v1/keys/site-b/enc_keys").await;
    assert_eq!(recipients(&world), [at(Party::Kme("site-b".parse().unwrap()), "site-b")]);
    world.get(ALICE, "/api/v1/keys/odd%20name%2F%C3%A9/enc_keys").await;
    assert_eq!(recipients(&world), [at(sae("odd name/é"), "site-b")]);
    world.get(ALICE, "/api/v1/keys/dave/enc_keys").await;
    assert_eq!(recipients(&world), [at(sae("dave"), "site-a")]);
    let body = r#"{"additional_slave_SAE_IDs": ["erin", "dave"]}"#;
    world.post(ALICE, "/api/v1/keys/site-b/enc_keys", body).await;
    let all = [
        at(Party::Kme("site-b".parse().unwrap()), "site-b"),
        at(sae("erin"), "site-c"),
        at(sae("dave"), "site-a"),
    ];
    assert_eq!(recipients(&world), all);
    for (unknown, message) in [
        ("nobody", "the SAE or KME in the path is unknown"),
        ("BOB", "the SAE or KME in the path is unknown"),
        ("alice", "the path shall name the other SAE, not the caller"),
    ] {
        let reply = world.get(ALICE, &format!("/api/v1/keys/{unknown}/enc_keys")).await;
        assert_eq!((reply.status, reply.message()), (StatusCode::BAD_REQUEST, message));
    }
    assert_eq!(world.orders(), 0);
}

#[tokio::test]
async fn a_source_that_fails_is_503_with_what_failed_and_when_to_come_back() {
    let world = World::new().await;
    let cases: [(fn() -> SupplyError, &str); 7] = [
        (|| SupplyError::PeerUnavailable("site-b".parse().unwrap()), "KME site-b does not answer"),
        (
            || SupplyError::PeerBusy { kme: "site-b".parse().unwrap(), reason: "disk".to_owned() },
            "KME site-b cannot take keys now: disk",
        ),
        (
            || SupplyError::PeerRefused { kme: "site-b".parse().unwrap(), reason: "inner".to_owned() },
            "KME site-b refused the keys",
        ),
        (|| SupplyError::TooFewPoolServers { answered: 1 }, "too few random pool servers answer"),
        (|| SupplyError::StoreFull, "the key store has no space left"),
        (|| SupplyError::Busy, "too many keys are being made"),
        (|| SupplyError::Slow, "making the keys took too long"),
    ];
    for (error, message) in cases {
        *world.source.mood.lock().unwrap() = Mood::Fail(error);
        let reply = world.get(ALICE, ENC).await;
        assert_eq!((reply.status, reply.message()), (StatusCode::SERVICE_UNAVAILABLE, message));
        assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    }
}

#[tokio::test]
async fn a_panic_is_a_503_and_the_next_request_is_served() {
    let world = World::new().await;
    *world.source.mood.lock().unwrap() = Mood::Panic;
    // The mutex of the test double is poisoned by it; a new world shares nothing with this one.
    let reply = world.get(ALICE, ENC).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.message(), "the KME failed to serve the request");
    assert_eq!(world.get(ALICE, "/api/v1/keys/bob/status").await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_too_long_is_a_503() {
    let world = World::new().await;
    *world.source.mood.lock().unwrap() = Mood::Hang;
    let reply = world.get(ALICE, ENC).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.message(), "the request took too long");
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_at_once() {
    let world = Arc::new(World::new().await);
    *world.source.mood.lock().unwrap() = Mood::Hang;
    let hanging: Vec<_> = (0..8)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.get(ALICE, ENC).await.status })
        })
        .collect();
    let mut refused = None;
    while refused.is_none() {
        tokio::task::yield_now().await;
        let reply = world.get(ALICE, "/api/v1/keys/bob/status").await;
        refused = Some(reply).filter(|reply| reply.status == StatusCode::SERVICE_UNAVAILABLE);
    }
    let refused = refused.unwrap();
    assert_eq!(refused.message(), "too many requests");
    assert!(refused.headers.contains_key("retry-after"));
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}
