//! Status, and what holds for every call.

use super::*;

#[tokio::test]
async fn status_has_every_field_of_table_9_and_no_other() {
    let world = World::new().await;
    let reply = world.get(As::Sae("alice"), "/api/v1/keys/bob/status").await;
    assert_eq!(
        reply.body,
        json!({
            "source_KME_ID": "site-a", "target_KME_ID": "site-b",
            "master_SAE_ID": "alice", "slave_SAE_ID": "bob",
            "key_size": 256, "stored_key_count": 7, "max_key_count": 100, "max_key_per_request": 10,
            "max_key_size": 1024, "min_key_size": 64, "max_SAE_ID_count": 2,
        })
    );
    let of_kme = world.get(As::Sae("stranger"), "/api/v1/keys/site-c/status/").await;
    assert_eq!(of_kme.body["slave_SAE_ID"], "site-c");
    assert_eq!(of_kme.body["target_KME_ID"], "site-c");
    assert_eq!(of_kme.body["master_SAE_ID"], "stranger");
}

#[tokio::test]
async fn without_an_sae_certificate_of_this_site_every_call_is_401() {
    let world = World::new().await;
    for caller in [As::Kme("site-b"), As::Operator, As::Nobody, As::Sae("bob"), As::Sae("site-a")] {
        for path in ["/api/v1/keys/dave/status", "/api/v1/keys/dave/enc_keys", "/api/v1/keys/dave/dec_keys"] {
            let reply = world.get(caller, path).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{caller:?} {path}");
            assert_eq!(reply.body, json!({"message": "Unauthorized"}));
        }
    }
    assert_eq!(world.orders(), 0);
}

#[tokio::test]
async fn a_request_without_any_identity_is_401() {
    let world = World::new().await;
    let request = Request::get("/api/v1/keys/bob/enc_keys").body(Body::empty()).unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn other_verbs_are_405_with_allow_and_other_paths_404() {
    let world = World::new().await;
    for (verb, path, allow) in [
        ("POST", "/api/v1/keys/bob/status", "GET"),
        ("PUT", "/api/v1/keys/bob/enc_keys", "GET, POST"),
        ("DELETE", "/api/v1/keys/bob/dec_keys", "GET, POST"),
    ] {
        let request = Request::builder().method(verb).uri(path).body(Body::empty()).unwrap();
        let reply = world.send(As::Sae("alice"), request).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{verb} {path}");
        assert_eq!(reply.headers["allow"], allow);
        assert!(!reply.message().is_empty());
    }
    for path in ["/", "/api/v1/keys/bob", "/api/v1/keys/a/b/status", "/api/v1/keys/bob/enc_keys//"] {
        let reply = world.get(As::Sae("alice"), path).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        assert!(!reply.message().is_empty());
    }
    assert_eq!(world.orders(), 0);
}

#[tokio::test]
async fn a_body_on_get_and_a_query_on_post_are_not_looked_at() {
    let world = World::new().await;
    let request = Request::get("/api/v1/keys/bob/enc_keys").body(Body::from("{\"number\": 9")).unwrap();
    assert_eq!(world.send(As::Sae("alice"), request).await.status, StatusCode::OK);
    let reply = world.post(As::Sae("alice"), "/api/v1/keys/bob/enc_keys?number=9", "{}").await;
    assert_eq!(reply.body["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_body_over_the_bound_is_413() {
    let world = World::new().await;
    let body = format!("{{\"x\": \"{}\"}}", "y".repeat(1 << 20));
    for path in ["/api/v1/keys/bob/enc_keys", "/api/v1/keys/bob/dec_keys"] {
        let reply = world.post(As::Sae("alice"), path, &body).await;
        assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert!(!reply.message().is_empty());
    }
    assert_eq!(world.orders(), 0);
}
