//! One peer's client against a real listener, and against nobody.

mod failover;
mod lists;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use blast::{self, Confirm};
use futures_util::future::join_all;
use kme::{BatchId, KeyId, OsRandom, Party, PoolId, PoolSetId, Recipient, Seed, Timestamp};
use mtls::identity::Kind;
use mtls::{ExpectedServer, HttpVersion, HttpsClient, ListenerLimits, ListenerTls, Versions, listener};
use pki::Role;
use testkit::TRUST_DOMAIN;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::wire::{BATCHES_PATH, BatchMetadata, INFO_PATH, POOL_SETS_PATH, VOID_PATH, VoidRequest, encode};
use super::*;
use crate::pool::{AnnouncedPool, AnnouncedSet};

fn metadata() -> BatchMetadata {
    let now = Timestamp::from_ms(1_795_392_000_000);
    let pool = |n: u8| AnnouncedPool {
        server: format!("pool-{n}").parse().unwrap(),
        id: PoolId::from_bytes([n; 16]),
    };
    BatchMetadata {
        batch_id: BatchId::from_bytes([1; 16]),
        suite: blast::SUITE.to_owned(),
        pool_set: AnnouncedSet {
            id: PoolSetId::from_bytes([2; 16]),
            pools: vec![pool(1), pool(2)],
            words: 1 << 17,
            expires_at: now.plus(Duration::from_mins(10)),
        },
        seed: Seed::copy_of(&[3; 32]).unwrap(),
        mask_seed: Seed::copy_of(&[4; 32]).unwrap(),
        words_per_pool: 180,
        key_bytes: 32,
        key_ids: vec![KeyId::from_bytes([5; 16])],
        master: "alice".parse().unwrap(),
        recipients: vec![Recipient {
            party: Party::Sae("bob".parse().unwrap()),
            kme: "site-b".parse().unwrap(),
        }],
        created_at: now,
        expires_at: now.plus(Duration::from_hours(1)),
        confirm: Confirm::from_bytes([6; 16]),
    }
}

#[test]
fn metadata_survives_the_wire_and_shows_no_seed_in_debug() {
    let sent = metadata();
    let bytes = encode(&sent).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["seed"], "03".repeat(32));
    assert_eq!(
        json["recipients"][0],
        serde_json::json!({"party": {"kind": "sae", "id": "bob"}, "kme": "site-b"})
    );
    let received: BatchMetadata = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(content_digest(&received), content_digest(&sent));
    let shown = format!("{received:?}");
    assert!(!shown.contains("03") && !shown.contains("seed"), "{shown}");
}

#[test]
fn malformed_seeds_are_refused_without_being_repeated() {
    let text = String::from_utf8(encode(&metadata()).unwrap().to_vec()).unwrap();
    for bad in ["0303", "zz", &"03".repeat(33), ""] {
        let json = text.replace(&"03".repeat(32), bad);
        let error = serde_json::from_str::<BatchMetadata>(&json).unwrap_err().to_string();
        assert!(bad.is_empty() || !error.contains(bad), "{error}");
    }
}

#[test]
fn every_member_of_the_metadata_changes_the_digest() {
    let changes: [fn(&mut BatchMetadata); 18] = [
        |b| b.batch_id = BatchId::from_bytes([9; 16]),
        |b| b.suite.push('x'),
        |b| b.pool_set.id = PoolSetId::from_bytes([9; 16]),
        |b| b.pool_set.words *= 2,
        |b| b.pool_set.expires_at = b.pool_set.expires_at.plus(Duration::from_millis(1)),
        |b| b.pool_set.pools.swap(0, 1),
        |b| drop(b.pool_set.pools.pop()),
        |b| b.seed = Seed::copy_of(&[9; 32]).unwrap(),
        |b| b.mask_seed = Seed::copy_of(&[9; 32]).unwrap(),
        |b| b.words_per_pool += 1,
        |b| b.key_bytes += 1,
        |b| b.key_ids.push(KeyId::from_bytes([9; 16])),
        |b| b.master = "dave".parse().unwrap(),
        |b| b.recipients[0].party = Party::Kme("bob".parse().unwrap()),
        |b| b.recipients[0].kme = "site-c".parse().unwrap(),
        |b| b.created_at = b.created_at.plus(Duration::from_millis(1)),
        |b| b.expires_at = b.expires_at.plus(Duration::from_millis(1)),
        |b| b.confirm = Confirm::from_bytes([9; 16]),
    ];
    let mut seen = std::collections::BTreeSet::from([content_digest(&metadata())]);
    for change in changes {
        let mut batch = metadata();
        change(&mut batch);
        assert!(seen.insert(content_digest(&batch)), "a change went unnoticed");
    }
}

struct Peer {
    url: String,
    client: PeerClient,
    calls: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const SETTINGS: PeerClientSettings =
    PeerClientSettings { timeout: Duration::from_secs(10), max_in_flight: 4 };

fn client_at(urls: &[&str], settings: PeerClientSettings) -> PeerClient {
    let expected = ExpectedServer::Kme("site-b".parse().unwrap());
    let tls = testkit::shared().tls(Role::Kme, "site-a");
    let https = HttpsClient::new(tls, expected, TRUST_DOMAIN, HttpVersion::Http2).unwrap();
    PeerClient::new("site-b".parse().unwrap(), urls, &https, settings, Arc::new(OsRandom))
}

impl Peer {
    /// A peer that answers every call with `status` and `body`; status 0 never answers.
    async fn answering(status: u16, body: &'static str, settings: PeerClientSettings) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let answer = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async move {
                match StatusCode::from_u16(status) {
                    Ok(status) => (status, body).into_response(),
                    Err(_) => std::future::pending().await,
                }
            }
        };
        let router = Router::new()
            .route(BATCHES_PATH, post(answer.clone()))
            .route(POOL_SETS_PATH, post(answer.clone()))
            .route(VOID_PATH, post(answer.clone()))
            .route(INFO_PATH, get(answer));
        let mut peer = Self::serving(router, settings).await;
        peer.calls = calls;
        peer
    }

    /// A peer with these answers, whose calls are not counted.
    async fn serving(router: Router, settings: PeerClientSettings) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", tcp.local_addr().unwrap());
        let tls = ListenerTls::Mutual {
            store: testkit::shared().tls(Role::Kme, "site-b"),
            rules: testkit::spiffe_rules(),
            accepts: &[Kind::Kme],
            versions: Versions::Latest,
        };
        let stop = CancellationToken::new();
        tokio::spawn(listener::serve("peer", tcp, tls, router, ListenerLimits::default(), stop.clone()));
        let client = client_at(&[&url], settings);
        Self { url, client, calls: Arc::default(), stop }
    }
}

#[tokio::test]
async fn an_acknowledgement_must_be_of_the_batch_that_was_pushed() {
    let right = r#"{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1}"#;
    let peer = Peer::answering(200, right, SETTINGS).await;
    peer.client.push(&[metadata()]).await.unwrap();
    for wrong in [
        r#"{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 2}"#,
        r#"{"batch_id": "02010101-0101-0101-0101-010101010101", "keys": 1}"#,
        "{}",
        "not JSON",
    ] {
        let peer = Peer::answering(200, wrong, SETTINGS).await;
        let refused = peer.client.push(&[metadata()]).await.unwrap_err().error;
        assert!(matches!(refused, PeerError::Garbled { .. }), "{wrong}: {refused}");
    }
}

#[tokio::test]
async fn refusals_are_final_and_sorted_by_who_can_change_them() {
    let body = r#"{"message": "because\u0007"}"#;
    for (status, set_gone, busy) in
        [(422, false, false), (409, false, false), (424, true, false), (503, false, true)]
    {
        let peer = Peer::answering(status, body, SETTINGS).await;
        let refused = peer.client.push(&[metadata()]).await.unwrap_err().error;
        assert_eq!(refused.refuses_set(), set_gone, "{refused}");
        assert_eq!(matches!(refused, PeerError::Busy { .. }), busy, "{refused}");
        assert!(refused.to_string().ends_with("because"), "{refused}");
        assert_eq!(peer.calls.load(Ordering::SeqCst), 1, "asked once");
        assert_eq!(peer.client.breaker(), BreakerState::Closed, "it answered");
    }
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_tried_again_then_left_alone() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let client = client_at(&[&url], SETTINGS);
    let request = VoidRequest {
        batch_id: BatchId::from_bytes([1; 16]),
        key_ids: Vec::new(),
        expires_at: Timestamp::from_ms(0),
    };
    let first = client.void(&request).await.unwrap_err();
    assert!(
        matches!(first, PeerError::Unreachable { .. }),
        "what was sent is never reported as not sent: {first}"
    );
    assert_eq!(client.breaker(), BreakerState::Open);
    let second = client.void(&request).await.unwrap_err();
    assert!(second.was_not_sent(), "{second}");
}

#[tokio::test]
async fn a_call_that_gets_no_answer_ends_by_its_deadline() {
    let settings = PeerClientSettings { timeout: Duration::from_millis(100), max_in_flight: 1 };
    let peer = Peer::answering(0, "", settings).await;
    let calls = 8;
    for result in join_all((0..calls).map(|_| peer.client.info_at(0))).await {
        let slow = result.unwrap_err();
        assert!(matches!(slow, PeerError::Slow(_)), "{slow}");
    }
    // A second one may slip in when the first is abandoned.
    let served = peer.calls.load(Ordering::SeqCst);
    assert!(served < calls, "{served}: nobody's wait for a turn ended");
}

#[tokio::test]
async fn info_of_another_kme_is_not_believed() {
    let other = r#"{"kme_id": "site-x", "version": "1", "protocols": [], "suites": [],
        "clock": "2026-11-24T00:00:00Z", "limits": {"min_key_size": 8, "max_key_size": 8,
        "max_keys_per_batch": 1, "clock_skew_max_secs": 1}}"#;
    let peer = Peer::answering(200, other, SETTINGS).await;
    assert!(matches!(peer.client.info_at(0).await, Err(PeerError::Garbled { .. })));
}
