//! A peer with several addresses: which is asked, when the next is, and the state of the peer as a whole.

use std::slice;

use super::*;

const STORED: &str = r#"{"batch_id": "01010101-0101-0101-0101-010101010101", "keys": 1}"#;
const BECAUSE: &str = r#"{"message": "because"}"#;

/// Replicas of one peer and a client that knows all of them.
struct Replicas {
    each: Vec<Peer>,
    client: Arc<PeerClient>,
}

impl Replicas {
    async fn answering(answers: &[(u16, &'static str)], settings: PeerClientSettings) -> Self {
        let mut each = Vec::new();
        for (status, body) in answers {
            each.push(Peer::answering(*status, body, settings).await);
        }
        let urls: Vec<&str> = each.iter().map(|peer| peer.url.as_str()).collect();
        let client = Arc::new(client_at(&urls, settings));
        Self { each, client }
    }

    fn calls(&self) -> Vec<usize> {
        self.each.iter().map(|peer| peer.calls.load(Ordering::SeqCst)).collect()
    }

    fn states(&self) -> Vec<BreakerState> {
        self.client.addresses().map(|(_, state)| state).collect()
    }
}

/// An address where nobody listens.
async fn nobody() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("https://{}", socket.local_addr().unwrap())
}

#[tokio::test]
async fn calls_are_spread_over_the_addresses_that_answer() {
    let replicas = Replicas::answering(&[(200, STORED), (200, STORED)], SETTINGS).await;
    for _ in 0..10 {
        replicas.client.push(&[metadata()]).await.unwrap();
    }
    for calls in replicas.calls() {
        assert!(calls >= 5, "{:?}", replicas.calls());
    }
}

#[tokio::test]
async fn a_dead_address_gives_way_at_once_is_left_alone_and_the_peer_as_a_whole_answers() {
    let (dead, alive) = (nobody().await, Peer::answering(200, STORED, SETTINGS).await);
    let client = client_at(&[&dead, &alive.url], SETTINGS);
    for _ in 0..8 {
        client.push(&[metadata()]).await.unwrap();
    }
    assert_eq!(alive.calls.load(Ordering::SeqCst), 8, "each was answered at the first try of the living one");
    assert_ne!(client.addresses().next().unwrap().1, BreakerState::Closed);
    assert_eq!(client.breaker(), BreakerState::Closed);
}

#[tokio::test]
async fn a_silent_address_does_not_use_up_the_deadline_and_is_left_alone_soon() {
    let settings = PeerClientSettings { timeout: Duration::from_secs(5), max_in_flight: 4 };
    let replicas = Replicas::answering(&[(0, ""), (200, STORED)], settings).await;
    for _ in 0..12 {
        replicas.client.push(&[metadata()]).await.unwrap();
    }
    assert!(replicas.calls()[0] < 6, "{:?}", replicas.calls());
    assert_eq!(replicas.client.breaker(), BreakerState::Closed);
}

#[tokio::test]
async fn an_address_that_was_left_alone_is_asked_when_the_one_that_answered_falls_silent() {
    let settings = PeerClientSettings { timeout: Duration::from_secs(5), max_in_flight: 4 };
    let replicas = Replicas::answering(&[(0, ""), (200, STORED)], settings).await;
    for _ in 0..3 {
        // The second sends the answer to another call.
        assert!(matches!(replicas.client.info_at(1).await, Err(PeerError::Garbled { .. })));
    }
    assert_eq!(replicas.states(), [BreakerState::Closed, BreakerState::Open]);
    replicas.client.push(&[metadata()]).await.unwrap();
}

#[tokio::test]
async fn an_address_without_room_gives_way_and_only_a_peer_without_room_is_busy() {
    let one = Replicas::answering(&[(503, BECAUSE), (200, STORED)], SETTINGS).await;
    for _ in 0..4 {
        one.client.push(&[metadata()]).await.unwrap();
    }
    assert_eq!(one.states(), [BreakerState::Closed; 2], "it answered");
    let both = Replicas::answering(&[(503, BECAUSE), (503, BECAUSE)], SETTINGS).await;
    let busy = both.client.push(&[metadata()]).await.unwrap_err().error;
    assert!(matches!(busy, PeerError::Busy { .. }), "{busy}");
    assert_eq!(both.calls(), [1, 1], "each was asked once");
}

#[tokio::test]
async fn a_replica_that_lacks_the_pools_is_passed_over_and_another_set_is_needed_when_all_lack_them() {
    let one = Replicas::answering(&[(424, BECAUSE), (200, STORED)], SETTINGS).await;
    for _ in 0..6 {
        one.client.push(&[metadata()]).await.unwrap();
    }
    assert_eq!(one.calls()[0], 1, "it is not asked again for a batch of that set");
    let mut other_set = metadata();
    other_set.pool_set.id = PoolSetId::from_bytes([7; 16]);
    for _ in 0..2 {
        one.client.push(slice::from_ref(&other_set)).await.unwrap();
    }
    assert_eq!(one.calls()[0], 2, "another set is another question");
    let both = Replicas::answering(&[(424, BECAUSE), (424, BECAUSE)], SETTINGS).await;
    assert!(both.client.push(&[metadata()]).await.unwrap_err().error.refuses_set());
    let (dead, lacking) = (nobody().await, Peer::answering(424, BECAUSE, SETTINGS).await);
    let client = client_at(&[&lacking.url, &dead], SETTINGS);
    assert!(client.push(&[metadata()]).await.unwrap_err().error.refuses_set(), "the rest does not answer");
}

#[tokio::test]
async fn what_the_store_of_the_peer_says_is_final_and_rules_may_differ_between_replicas() {
    for (status, asked) in [(409, 1), (410, 1), (403, 2), (422, 2)] {
        let replicas = Replicas::answering(&[(status, BECAUSE), (status, BECAUSE)], SETTINGS).await;
        let refused = replicas.client.push(&[metadata()]).await.unwrap_err().error;
        assert!(matches!(refused, PeerError::Refused { .. }), "{refused}");
        assert_eq!(replicas.calls().iter().sum::<usize>(), asked, "{status}");
    }
    let one = Replicas::answering(&[(422, BECAUSE), (200, STORED)], SETTINGS).await;
    one.client.push(&[metadata()]).await.unwrap();
}

#[tokio::test]
async fn a_new_set_is_announced_at_every_address_and_one_that_takes_it_is_enough() {
    let set = metadata().pool_set;
    let ready = r#"{"left_bits": 1}"#;
    let two = Replicas::answering(&[(200, ready), (200, ready)], SETTINGS).await;
    two.client.announce(&set).await.unwrap();
    assert_eq!(two.calls(), [1, 1]);
    let one = Replicas::answering(&[(424, BECAUSE), (200, ready)], SETTINGS).await;
    one.client.announce(&set).await.unwrap();
    assert_eq!(one.calls(), [1, 1]);
    let none = Replicas::answering(&[(424, BECAUSE), (503, BECAUSE)], SETTINGS).await;
    assert!(none.client.announce(&set).await.unwrap_err().refuses_set());
    let (dead, alive) = (nobody().await, Peer::answering(200, ready, SETTINGS).await);
    Arc::new(client_at(&[&dead, &alive.url], SETTINGS)).announce(&set).await.unwrap();
}

#[tokio::test]
async fn an_address_where_another_kme_answers_is_not_called() {
    let other = r#"{"kme_id": "site-x", "version": "1", "protocols": [], "suites": [],
        "clock": "2026-11-24T00:00:00Z", "limits": {"min_key_size": 8, "max_key_size": 8,
        "max_keys_per_batch": 1, "clock_skew_max_secs": 1}}"#;
    let replicas = Replicas::answering(&[(200, other), (200, STORED)], SETTINGS).await;
    for _ in 0..3 {
        assert!(matches!(replicas.client.info_at(0).await, Err(PeerError::Garbled { .. })));
    }
    assert_eq!(replicas.states(), [BreakerState::Open, BreakerState::Closed]);
    replicas.client.push(&[metadata()]).await.unwrap();
    assert_eq!(replicas.calls(), [3, 1]);
}

#[tokio::test]
async fn metadata_that_a_silent_address_may_have_got_is_not_said_to_be_protected_by_what_answered() {
    let settings = PeerClientSettings { timeout: Duration::from_secs(5), max_in_flight: 4 };
    let (dead, alive) = (nobody().await, Peer::answering(200, STORED, settings).await);
    let silent = Peer::answering(0, "", settings).await;
    let at_once = client_at(&[&alive.url], settings).push(&[metadata()]).await.unwrap();
    assert!(at_once.hybrid_tls);
    let after_none = client_at(&[&dead, &alive.url], settings).push(&[metadata()]).await.unwrap();
    assert!(after_none.hybrid_tls, "nothing was sent to the first");
    let after_silence = client_at(&[&silent.url, &alive.url], settings).push(&[metadata()]).await.unwrap();
    assert!(!after_silence.hybrid_tls);
}

#[tokio::test]
async fn when_no_address_answers_calls_are_refused_without_asking() {
    let (one, two) = (nobody().await, nobody().await);
    let client = client_at(&[&one, &two], SETTINGS);
    let first = client.push(&[metadata()]).await.unwrap_err().error;
    assert!(matches!(first, PeerError::Unreachable { .. }), "{first}");
    assert_eq!(client.breaker(), BreakerState::Open);
    let second = client.push(&[metadata()]).await.unwrap_err().error;
    assert!(second.was_not_sent(), "{second}");
}
