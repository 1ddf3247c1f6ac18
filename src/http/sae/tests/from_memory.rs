//! Keys in memory: answered at the first poll, within a bound on allocations.

use futures_util::FutureExt as _;

use super::*;

/// Allocations of one request for one key, from the parsed head to the answer: the request's future and that
/// of the source of keys, the list of keys, the buffer of the body, what wipes it, the box of the body, two
/// for the headers. Each further one is more work for every request.
const ALLOCATIONS_MAX: u64 = 8;

#[tokio::test]
async fn a_key_in_memory_is_answered_without_waiting_and_with_few_allocations() {
    let net = Net::new().await;
    let made = net.sites.a.source.put_ready(3).await;
    let alice = Identity::Sae(testkit::authenticated_sae("alice"));
    let connection = net.a.open(ClientIdentity::new(Ok(alice)));
    for (nth, key) in made.iter().enumerate() {
        let request = Request::get("/api/v1/keys/bob/enc_keys").body(Body::empty()).unwrap();
        let mut answer = None;
        let cost = allocation_counter::measure(|| answer = connection.answer(request).now_or_never());
        let response = answer.unwrap();
        let text = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
        let expected = crate::http::sae::key_container(std::slice::from_ref(key)).unwrap();
        assert_eq!(text, expected);
        // The first request also makes the counters.
        assert!(nth == 0 || cost.count_total <= ALLOCATIONS_MAX, "{cost:?}");
    }
    assert!(net.sites.a.source.orders().is_empty(), "nothing had to be made");
    // Now no key is in memory.
    net.enc(1).await;
    assert_eq!(net.sites.a.source.orders().len(), 1);
}

#[tokio::test]
async fn fewer_keys_in_memory_than_asked_for_stay_there() {
    let net = Net::new().await;
    let made = net.sites.a.source.put_ready(2).await;
    net.enc(3).await;
    assert_eq!(net.sites.a.source.orders().len(), 1);
    let handed_out: Vec<String> = net.enc(2).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(handed_out, made.iter().map(|key| key.id.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_refused_is_refused_also_when_a_key_is_in_memory() {
    let net = Net::new().await;
    net.sites.a.source.put_ready(1).await;
    for (caller, path, status) in [
        ("alice", "nobody/enc_keys", StatusCode::BAD_REQUEST),
        ("alice", "alice/enc_keys", StatusCode::BAD_REQUEST),
        ("alice", "bob/enc_keys?number=9", StatusCode::BAD_REQUEST),
        ("bob", "alice/enc_keys", StatusCode::UNAUTHORIZED),
    ] {
        let request = Request::get(format!("/api/v1/keys/{path}"));
        let identity = ClientIdentity::new(Ok(Identity::Sae(testkit::authenticated_sae(caller))));
        let answer = answer(&net.a, request.extension(identity).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, status, "{caller} {path}");
    }
    net.enc(1).await;
    assert!(net.sites.a.source.orders().is_empty(), "the key was still there");
}
