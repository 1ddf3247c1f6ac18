//! `qkd014::Client` over real mutual TLS, against a small KME and against servers that misbehave. Tests that
//! need dqkd are in `src/http/sae/tests/qkd014_client.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use pki::Role;
use qkd014::{Client, ClientError, Credentials, KeyRequest};
use testkit::{SmallKme, TestAuthority};

fn client(kme: &SmallKme, sae: &str) -> Client {
    let [ca, cert, key] = SmallKme::files(sae);
    Client::new(&kme.url(), Credentials::from_pem_files(ca, cert, key).unwrap()).unwrap()
}

fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status.as_u16(), message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn both_sides_get_the_same_keys_and_debug_shows_none() {
    let kme = SmallKme::start().await;
    let (alice, bob) = (client(&kme, "alice"), client(&kme, "bob"));
    assert_eq!(alice.status("b/o b%é").await.unwrap().slave_sae_id, "b/o b%é");
    let request = KeyRequest { number: Some(3), ..KeyRequest::default() };
    let hers = alice.enc_keys("bob", &request).await.unwrap().keys;
    let ids: Vec<&str> = hers.iter().map(|key| key.id.as_str()).collect();
    let his = bob.dec_keys("alice", &ids).await.unwrap().keys;
    assert_eq!(his.len(), 3);
    for (hers, his) in hers.iter().zip(&his) {
        assert!(hers.id == his.id && hers.key.ct_eq(&his.key));
    }
    assert!(!format!("{hers:?} {alice:?}").contains(&*hers[0].to_base64()));
    let again = refusal(bob.dec_keys("alice", &ids).await);
    assert_eq!(again, (400, "one or more keys specified are not found on KME".to_owned()));
}

#[tokio::test]
async fn a_url_that_is_none_comes_with_the_one_that_was_meant() {
    let tls = testkit::shared().tls(Role::Sae, "alice");
    let error = Client::new("127.0.0.1:8443", tls).unwrap_err();
    assert!(matches!(error, ClientError::Url(_)));
    assert!(error.to_string().contains("did you mean https://127.0.0.1:8443?"), "{error}");
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let [ca, cert, _] = SmallKme::files("alice");
    let error = Credentials::from_pem_files(ca, &cert, "/nowhere/alice.key").unwrap_err();
    assert!(error.to_string().contains("/nowhere/alice.key"), "{error}");
}

#[tokio::test]
async fn a_server_with_a_certificate_for_another_host_or_of_another_ca_gets_no_request() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let count = any(async move || counted.fetch_add(1, Ordering::Relaxed).to_string());
    let server = SmallKme::answering(Router::new().fallback_service(count)).await;
    let elsewhere = server.url().replace("127.0.0.1", "127.0.0.2");
    let tls = testkit::shared().tls(Role::Sae, "alice");
    let client = Client::new(&elsewhere, tls).unwrap();
    let refused = client.enc_keys("bob", &KeyRequest::default()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Connect { .. }), "{refused:?}");
    assert!(refused.to_string().contains("not valid for name"), "{refused}");

    let stranger = Client::new(&server.url(), TestAuthority::new().tls(Role::Sae, "alice")).unwrap();
    let refused = stranger.enc_keys("bob", &KeyRequest::default()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Connect { .. }), "{refused:?}");
    assert!(refused.to_string().contains("is this the CA of the KME's certificate?"), "{refused}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_kme_that_refuses_the_certificate_is_told_from_one_that_broke_off() {
    let (kme, stranger) = (SmallKme::start().await, TestAuthority::new());
    let own = stranger.files(Role::Sae, "alice");
    let credentials =
        Credentials::from_pem_files(testkit::shared().path("ca.pem"), own.cert, own.key).unwrap();
    let refused = Client::new(&kme.url(), credentials).unwrap().status("bob").await.unwrap_err().to_string();
    assert!(refused.contains("does the KME trust the CA of this SAE's certificate?"), "{refused}");
}

#[tokio::test]
async fn answers_that_are_no_answers_are_told_apart_and_their_content_is_not_repeated() {
    let bodies = |body: &'static str| any(async move || body);
    let router = Router::new()
        .route("/api/v1/keys/number/{call}", bodies(r#"{"keys":7}"#))
        .route("/api/v1/keys/base64/{call}", bodies(r#"{"keys":[{"key_ID":"x","key":"s3same"}]}"#))
        .route("/api/v1/keys/html/{call}", bodies("<html>"))
        .route("/api/v1/keys/page/{call}", any(async || (StatusCode::BAD_GATEWAY, "<html>")))
        .route(
            "/api/v1/keys/bell/{call}",
            any(async || (StatusCode::BAD_REQUEST, "{\"message\":\"\\u001b[2J\\u0007bell\"}")),
        );
    let server = SmallKme::answering(router).await;
    let alice = client(&server, "alice");
    for slave in ["number", "base64", "html"] {
        let garbled = alice.enc_keys(slave, &KeyRequest::default()).await.unwrap_err();
        assert!(matches!(garbled, ClientError::NotEtsi014(_)), "{slave}: {garbled}");
        assert!(!format!("{garbled:?} {garbled}").contains("s3same"));
    }
    let page = refusal(alice.status("page").await);
    assert_eq!(page, (502, String::new()));
    let bell = refusal(alice.status("bell").await);
    assert_eq!(bell, (400, "[2Jbell".to_owned()), "nothing that a terminal obeys");
}

#[tokio::test]
async fn a_call_ends_in_time_when_the_server_never_answers() {
    let server = SmallKme::answering(Router::new().fallback(std::future::pending::<()>)).await;
    let client = client(&server, "alice").with_timeout(Duration::from_millis(300));
    let slow = client.status("bob").await.unwrap_err();
    assert!(matches!(slow, ClientError::Slow(_)), "{slow}");
}

#[tokio::test]
async fn many_calls_at_once_and_one_after_the_other_are_all_answered() {
    let kme = SmallKme::start().await;
    let (alice, request) = (client(&kme, "alice"), KeyRequest::default());
    for _ in 0..3 {
        let calls = (0..20).map(|_| alice.enc_keys("bob", &request));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.unwrap().keys.len(), 1);
        }
    }
}
