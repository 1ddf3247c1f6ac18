//! The client against our own KME, and against servers that do not behave, over real mutual TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use mtls::{HttpsError, ListenerLimits, ListenerService, ListenerTls, Versions, listener};
use pki::Role;
use qkd014::client::{ClientError, EncRequest, Etsi014Client};
use testkit::TestAuthority;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::delivery::testing::{TestSites, rules};
use crate::http::RequestMeters;
use crate::http::middleware::EdgeLimits;

const PATIENCE: Duration = Duration::from_secs(20);

/// A listener on all loopback addresses, whose certificate is for 127.0.0.1 and localhost.
struct TestListener {
    port: u16,
    _stop: DropGuard,
}

impl TestListener {
    async fn start(service: impl ListenerService) -> Self {
        let tcp = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let SocketAddr::V4(address) = tcp.local_addr().unwrap() else { panic!("IPv4 was asked for") };
        let tls = ListenerTls::Mutual {
            store: testkit::shared().tls(Role::Kme, "site-a"),
            rules: testkit::spiffe_rules(),
            versions: Versions::Compatible,
        };
        let stop = CancellationToken::new();
        tokio::spawn(listener::serve("sae", tcp, tls, service, ListenerLimits::default(), stop.clone()));
        Self { port: address.port(), _stop: stop.drop_guard() }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn client(&self, authority: &TestAuthority, sae: &str) -> Etsi014Client {
        Etsi014Client::new(&self.url(), authority.tls(Role::Sae, sae), PATIENCE).unwrap()
    }
}

async fn kme() -> (TestSites, TestListener) {
    let sites = TestSites::new(rules()).await;
    let limits = EdgeLimits { max_concurrent: 10, timeout: PATIENCE };
    let api = crate::http::sae::api(
        Arc::clone(&sites.a.delivery),
        limits,
        TaskTracker::new(),
        &RequestMeters::default(),
    );
    let server = TestListener::start(api).await;
    (sites, server)
}

fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status.as_u16(), message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn status_fresh_keys_and_keys_by_id_come_through() {
    let (sites, server) = kme().await;
    sites.a.source.set_deliverable(7);
    let (alice, dave) = (server.client(testkit::shared(), "alice"), server.client(testkit::shared(), "dave"));
    let status = alice.status("b/o b%é").await.unwrap();
    assert_eq!((status.slave_sae_id.as_str(), status.stored_key_count), ("b/o b%é", 7));
    assert_eq!((status.master_sae_id.as_str(), status.source_kme_id.as_str()), ("alice", "site-a"));

    let request =
        EncRequest { number: Some(2), size: Some(512), additional_slaves: vec!["carol".to_owned()] };
    let made = alice.enc_keys("dave", &request).await.unwrap().keys;
    assert_eq!(made.iter().map(|key| key.key.len()).collect::<Vec<_>>(), [64, 64]);
    assert_eq!(sites.a.source.orders()[0].recipients.len(), 2);
    let ids: Vec<String> = made.iter().map(|key| key.id.clone()).collect();
    let got = dave.dec_keys("alice", &ids).await.unwrap().keys;
    for (mine, yours) in made.iter().zip(&got) {
        assert!(mine.id == yours.id && mine.key.ct_eq(&yours.key));
    }
    let one = alice.enc_keys("site-b", &EncRequest::default()).await.unwrap().keys;
    assert_eq!((one.len(), one[0].key.len()), (1, 32), "defaults are the KME's");
    assert!(!format!("{one:?}").contains(&*one[0].to_base64()), "keys are not in Debug");
}

#[tokio::test]
async fn a_refusal_carries_the_status_and_the_message_of_the_kme() {
    let (_sites, server) = kme().await;
    let alice = server.client(testkit::shared(), "alice");
    let request = EncRequest { size: Some(257), ..EncRequest::default() };
    let refused = refusal(alice.enc_keys("bob", &request).await);
    assert_eq!(refused, (400, "size shall be a multiple of 8".to_owned()));
    let unknown = ["00000000-0000-4000-8000-000000000000".to_owned()];
    let refused = refusal(alice.dec_keys("bob", &unknown).await);
    assert_eq!(refused, (400, crate::delivery::KEYS_NOT_FOUND.to_owned()));
    // bob lives at site-b.
    let refused = refusal(server.client(testkit::shared(), "bob").status("alice").await);
    assert_eq!(refused, (401, "Unauthorized".to_owned()));
}

#[tokio::test]
async fn a_server_with_a_certificate_for_another_host_or_of_another_ca_is_not_talked_to() {
    let (sites, server) = kme().await;
    let elsewhere = format!("https://127.0.0.2:{}", server.port);
    let tls = testkit::shared().tls(Role::Sae, "alice");
    let client = Etsi014Client::new(&elsewhere, tls, PATIENCE).unwrap();
    let refused = client.enc_keys("bob", &EncRequest::default()).await;
    assert!(matches!(refused, Err(ClientError::Https(HttpsError::Connect(_)))), "{refused:?}");

    let stranger = server.client(&TestAuthority::new(), "alice");
    let refused = stranger.enc_keys("bob", &EncRequest::default()).await;
    assert!(matches!(refused, Err(ClientError::Https(HttpsError::Connect(_)))), "{refused:?}");
    assert!(sites.a.source.orders().is_empty(), "no request got through");
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
    let server = TestListener::start(router).await;
    let alice = server.client(testkit::shared(), "alice");
    for slave in ["number", "base64", "html"] {
        let garbled = alice.enc_keys(slave, &EncRequest::default()).await.unwrap_err();
        assert!(matches!(garbled, ClientError::Garbled(_)), "{slave}: {garbled}");
        assert!(!format!("{garbled:?} {garbled}").contains("s3same"));
    }
    let page = refusal(alice.status("page").await);
    assert_eq!(page, (502, String::new()));
    let bell = refusal(alice.status("bell").await);
    assert_eq!(bell, (400, "[2Jbell".to_owned()), "nothing that a terminal obeys");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let server = TestListener::start(Router::new().fallback(std::future::pending::<()>)).await;
    let tls = testkit::shared().tls(Role::Sae, "alice");
    let client = Etsi014Client::new(&server.url(), tls, Duration::from_millis(300)).unwrap();
    let slow = client.status("bob").await.unwrap_err();
    assert!(matches!(slow, ClientError::Slow(_)), "{slow}");
}
