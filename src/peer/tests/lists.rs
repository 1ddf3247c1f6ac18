//! Several batches in one push: its form, how many a peer is sent at once, what the peer must acknowledge.

use axum::extract::State;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::peer::wire::Push;

/// The batch number `n`, of `keys` keys.
fn numbered(n: u8, keys: u8) -> BatchMetadata {
    let key_ids = (0..keys).map(|key| KeyId::from_bytes([n, 0, 0, 0, 0, 0, key, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    BatchMetadata { batch_id: BatchId::from_bytes([n; 16]), key_ids: key_ids.collect(), ..metadata() }
}

fn acknowledged(batch: &Value) -> Value {
    json!({"batch_id": batch["batch_id"], "keys": batch["key_ids"].as_array().unwrap().len()})
}

/// A peer that says how many batches of one push it takes, and keeps what it was sent.
struct Taker {
    peer: Peer,
    most: Arc<Mutex<Option<u64>>>,
    sent: Arc<Mutex<Vec<Value>>>,
}

impl Taker {
    /// `most`: what its info says; `None` for a release that says nothing.
    async fn of(most: Option<u64>) -> Self {
        let (most, sent) = (Arc::new(Mutex::new(most)), Arc::<Mutex<Vec<Value>>>::default());
        let info = async |State(most): State<Arc<Mutex<Option<u64>>>>| {
            let mut info = json!({
                "kme_id": "site-b", "version": "1", "protocols": ["1"], "suites": [blast::SUITE],
                "clock": "2026-11-24T00:00:00Z",
                "limits": {"min_key_size": 8, "max_key_size": 8, "max_keys_per_batch": 64, "clock_skew_max_secs": 1},
            });
            if let Some(most) = *most.lock() {
                info["limits"]["max_batches_per_push"] = json!(most);
            }
            info.to_string()
        };
        let kept = Arc::clone(&sent);
        let batches = async move |body: String| {
            let body: Value = serde_json::from_str(&body).unwrap();
            let answer = match &body {
                Value::Array(list) => list.iter().map(acknowledged).collect(),
                one => acknowledged(one),
            };
            kept.lock().push(body);
            answer.to_string()
        };
        let router = Router::new()
            .route(INFO_PATH, get(info))
            .with_state(Arc::clone(&most))
            .route(BATCHES_PATH, post(batches));
        Self { peer: Peer::serving(router, SETTINGS).await, most, sent }
    }
}

#[test]
fn a_push_is_one_batch_or_a_list_of_batches() {
    let one: Push = serde_json::from_slice(&encode(&metadata()).unwrap()).unwrap();
    assert!(matches!(&one, Push::One(batch) if content_digest(batch) == content_digest(&metadata())));
    let sent = [numbered(1, 2), numbered(2, 1)];
    let Push::List(list) = serde_json::from_slice(&encode(&sent).unwrap()).unwrap() else {
        panic!("a list was read as one batch");
    };
    let digests = |batches: &[BatchMetadata]| batches.iter().map(content_digest).collect::<Vec<_>>();
    assert_eq!(digests(&list), digests(&sent));
    let shown = format!("{:?} {one:?}", Push::List(list));
    assert!(!shown.contains("03") && !shown.contains("seed"), "{shown}");
    assert!(matches!(serde_json::from_str("[]").unwrap(), Push::List(list) if list.is_empty()));
}

#[test]
fn a_malformed_push_is_refused_without_repeating_a_seed() {
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let one = text(encode(&metadata()).unwrap());
    let list = text(encode(&[metadata(), metadata()]).unwrap());
    for text in [one, list] {
        for bad in ["0303", "zz", &"03".repeat(33)] {
            let json = text.replace(&"03".repeat(32), bad);
            let error = serde_json::from_str::<Push>(&json).unwrap_err().to_string();
            assert!(!error.contains(bad), "{error}");
        }
        let nested = format!("[{text}, [{text}]]");
        let error = serde_json::from_str::<Push>(&nested).unwrap_err().to_string();
        assert!(!error.contains("0303"), "{error}");
    }
    for other in ["7", "null", "true", "\"0303\""] {
        let error = serde_json::from_str::<Push>(other).unwrap_err().to_string();
        assert!(error.contains("expected a batch or a list of batches"), "{error}");
    }
}

#[tokio::test]
async fn a_peer_gets_one_batch_at_a_time_until_each_of_its_replicas_has_said_that_it_takes_more() {
    let (one, other) = (Taker::of(Some(4)).await, Taker::of(Some(3)).await);
    let client = client_at(&[&one.peer.url, &other.peer.url], SETTINGS);
    assert_eq!(client.batches_per_push(), 1, "nobody was asked");
    client.info_at(0).await.unwrap();
    assert_eq!(client.batches_per_push(), 1, "the other was not asked");
    client.info_at(1).await.unwrap();
    assert_eq!(client.batches_per_push(), 3, "what both take");
    // One is replaced by an older release, then by one that says what makes no sense.
    for most in [None, Some(0), Some(1)] {
        *one.most.lock() = most;
        let info = client.info_at(0).await.unwrap();
        assert_eq!(client.batches_per_push(), 1, "{most:?}");
        assert_eq!(info.limits.max_batches_per_push as u64, most.unwrap_or(1));
    }
    *one.most.lock() = Some(4);
    client.info_at(0).await.unwrap();
    assert_eq!(client.batches_per_push(), 3);
    // While a replica does not answer, what it said last counts.
    other.peer.stop.cancel();
    let _ = client.info_at(1).await;
    assert_eq!(client.batches_per_push(), 3);
}

#[tokio::test]
async fn one_batch_goes_as_itself_and_several_as_a_list() {
    let taker = Taker::of(Some(4)).await;
    let client = &taker.peer.client;
    client.push(&[numbered(1, 2)]).await.unwrap();
    client.push(&[numbered(2, 1), numbered(3, 2), numbered(4, 3)]).await.unwrap();
    let sent = taker.sent.lock();
    let id = |n: u8| BatchId::from_bytes([n; 16]).to_string();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0]["batch_id"], id(1), "an object, which older releases read");
    let ids: Vec<&Value> = sent[1].as_array().unwrap().iter().map(|batch| &batch["batch_id"]).collect();
    assert_eq!(ids, [&id(2), &id(3), &id(4)]);
}

#[tokio::test]
async fn an_acknowledgement_must_be_of_all_batches_of_the_push_and_of_no_others() {
    let pushed = [numbered(1, 1), numbered(2, 3)];
    let right = r#"[{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1},
        {"batch_id": "02020202-0202-0202-0202-020202020202", "keys": 3}]"#;
    Peer::answering(200, right, SETTINGS).await.client.push(&pushed).await.unwrap();
    for wrong in [
        r#"[{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1}]"#,
        r#"{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1}"#,
        r#"[{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1},
            {"batch_id": "02020202-0202-0202-0202-020202020202", "keys": 2}]"#,
        r#"[{"batch_id": "02020202-0202-0202-0202-020202020202", "keys": 3},
            {"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1}]"#,
        r#"[{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1},
            {"batch_id": "02020202-0202-0202-0202-020202020202", "keys": 3},
            {"batch_id": "03030303-0303-0303-0303-030303030303", "keys": 1}]"#,
        "[]",
        "not JSON",
    ] {
        let peer = Peer::answering(200, wrong, SETTINGS).await;
        let NotPushed { error, may_be_stored } = peer.client.push(&pushed).await.unwrap_err();
        assert!(matches!(error, PeerError::Garbled { .. }), "{wrong}: {error}");
        assert!(may_be_stored, "{wrong}");
    }
    let peer = Peer::answering(200, right, SETTINGS).await;
    let error = peer.client.push(&pushed[..1]).await.unwrap_err().error;
    assert!(matches!(error, PeerError::Garbled { .. }), "a list for one batch: {error}");
}
