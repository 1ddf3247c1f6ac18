//! Paths, verbs, bodies, failures behind the router, and clients that go away.

use futures_util::StreamExt as _;
use tokio::sync::Notify;

use super::*;
use crate::delivery::testing::{Mood, kme};
use crate::supply::SupplyError;

#[tokio::test]
async fn other_paths_are_404_and_other_verbs_405_in_json() {
    let net = Net::new().await;
    for path in [
        "/",
        "/api/v1/keys",
        "/api/v1/keys/bob",
        "/api/v2/keys/bob/status",
        "/healthz",
        "/api/v1/keys/bob/status//",
    ] {
        for verb in ["GET", "POST", "DELETE"] {
            let answer = net.call("alice", Request::builder().method(method(verb)).uri(path), "").await;
            assert_eq!(
                (answer.status, answer.message().as_str()),
                (StatusCode::NOT_FOUND, "no such path"),
                "{path}"
            );
        }
    }
    for (call, verbs, allow) in [
        ("status", &["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"][..], "GET"),
        ("enc_keys", &["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"], "GET, POST"),
        ("dec_keys", &["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"], "GET, POST"),
    ] {
        for verb in verbs {
            let request = Request::builder().method(method(verb)).uri(format!("/api/v1/keys/bob/{call}"));
            let answer = net.call("alice", request, "{}").await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{verb} {call}");
            assert_eq!(answer.headers[header::ALLOW], allow);
        }
    }
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

#[tokio::test]
async fn bodies_that_are_too_long_or_certainly_not_json_are_refused() {
    let net = Net::new().await;
    let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(1 << 20));
    for call in ["enc_keys", "dec_keys"] {
        let answer = net.post("alice", &format!("bob/{call}"), long.clone()).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(!answer.message().is_empty());
        for kind in ["text/plain", "application/xml", "multipart/form-data; boundary=x"] {
            let request =
                Request::post(format!("/api/v1/keys/bob/{call}")).header(header::CONTENT_TYPE, kind);
            let answer = net.call("alice", request, "{}").await;
            assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
            assert!(!answer.message().is_empty());
        }
    }
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

/// A 400 would tell the client of a retrieval that its keys are gone.
#[tokio::test]
async fn a_body_that_stops_coming_is_503_uses_up_nothing_and_may_be_sent_again() {
    let net = Net::new().await;
    let made = net.enc(1).await;
    tokio::time::pause();
    for call in ["enc_keys", "dec_keys"] {
        let start = futures_util::stream::iter([Ok::<_, std::io::Error>("{")]);
        let body = Body::from_stream(start.chain(futures_util::stream::pending()));
        let answer = net.post("bob", &format!("alice/{call}"), body).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{call}");
        assert_eq!(answer.message(), "the request body did not arrive in time");
        assert!(answer.headers.contains_key(header::RETRY_AFTER));
    }
    tokio::time::resume();
    assert_eq!(net.dec("bob", "alice", &[&made[0].0]).await.keys(), made);
}

#[tokio::test]
async fn the_largest_request_that_the_limits_allow_fits_into_the_largest_body() {
    let net = Net::new().await;
    let made = net.enc(8).await;
    let entry = |(id, _): &(String, Vec<u8>)| {
        format!("{{\n\t\"key_ID\": \"{id}\",\n\t\"key_ID_extension\": {{}}\n}}")
    };
    let ids: Vec<String> = made.iter().map(entry).collect();
    let body = format!("{{ \"key_IDs\": [ {} ] }}", ids.join(" , "));
    assert_eq!(net.post("bob", "alice/dec_keys", body).await.keys(), made);
}

#[tokio::test]
async fn when_no_keys_can_be_made_the_answer_is_503_and_says_when_to_come_back() {
    let net = Net::new().await;
    let failures: [(Failure, &str, &str); 9] = [
        (|| SupplyError::PeerUnavailable(kme("site-b")), "KME site-b does not answer", "5"),
        (
            || SupplyError::PeerRefused { kme: kme("site-b"), reason: "inner affairs".into() },
            "KME site-b refused the keys",
            "30",
        ),
        (
            || SupplyError::PeerFull { kme: kme("site-b"), reason: "inner affairs".into() },
            "KME site-b stores no more keys now",
            "30",
        ),
        (
            || {
                let missing = vec!["pool-2".parse().unwrap(), "pool-3".parse().unwrap()];
                SupplyError::TooFewPoolServers { answered: 1, needed: 3, missing }
            },
            "too few random pool servers answer: 1 of the 3 that keys need here; missing: pool-2, pool-3",
            "5",
        ),
        (
            || SupplyError::PeerDemandsPools { kme: kme("site-b"), pools_min: 4 },
            "KME site-b accepts only keys from 4 or more random pools",
            "30",
        ),
        (|| SupplyError::StoreFull, "the key store has no space left", "30"),
        (|| SupplyError::Busy, "too many keys are being made", "1"),
        (|| SupplyError::Slow, "making the keys took too long", "5"),
        (|| SupplyError::Internal, "keys could not be made", "5"),
    ];
    for (failure, message, retry) in failures {
        net.sites.a.source.set_mood(Mood::Fails(failure));
        let answer = net.get("alice", "bob/enc_keys?number=2").await;
        assert_eq!((answer.status, answer.message().as_str()), (StatusCode::SERVICE_UNAVAILABLE, message));
        assert_eq!(answer.headers[header::RETRY_AFTER], retry, "{message}");
    }
    net.sites.a.source.set_mood(Mood::Works);
    net.enc(2).await;
}

#[tokio::test]
async fn when_the_store_is_gone_retrieval_is_503_and_no_key_is_lost_in_texts() {
    let net = Net::new().await;
    let made = net.enc(1).await;
    net.sites.b.store.close().await;
    let answer = net.dec("bob", "alice", &[&made[0].0]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER) && !answer.message().is_empty());
}

#[tokio::test]
async fn a_panic_costs_one_request_and_tells_nothing() {
    let net = Net::new().await;
    net.sites.a.source.set_mood(Mood::Panics);
    let answer = net.get("alice", "bob/enc_keys").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.message(), "the KME failed to serve the request");
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    net.sites.a.source.set_mood(Mood::Works);
    net.enc(1).await;
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_work_that_moves_keys() {
    let net = Arc::new(Net::limited(rules(), 1).await);
    let signal = Arc::new(Notify::new());
    net.sites.a.source.set_mood(Mood::WaitsFor(Arc::clone(&signal)));
    let client = tokio::spawn({
        let net = Arc::clone(&net);
        async move { net.get("alice", "bob/enc_keys").await }
    });
    net.sites.a.source.order_placed().await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    // It still counts against the bound.
    let refused = net.get("alice", "bob/status").await;
    assert_eq!(
        (refused.status, refused.message().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "too many requests")
    );
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    assert_eq!(net.marks().await, [(1, 0), (0, 0)]);
    signal.notify_one();
    net.tasks.close();
    net.tasks.wait().await;
    assert_eq!(net.marks().await, [(1, 1), (0, 1)], "both sites have the key that nobody was told of");
    assert_eq!(net.get("alice", "bob/status").await.status, StatusCode::OK);
}

/// A failure of the source of keys.
type Failure = fn() -> SupplyError;

/// What was logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn logs_name_caller_route_and_reason_and_never_a_key_a_body_or_a_path() {
    // With a single subscriber, tracing decides for each log statement in the first thread that reaches it,
    // perhaps another test's, which has no subscriber. With two, it asks both.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let net = Net::new().await;
    let made = net.enc(2).await;
    net.get("alice", "bob/status?key_size=256&s3same-name=1").await.json();
    net.dec("bob", "alice", &[&made[0].0]).await.keys();
    net.dec("carol", "alice", &[&made[1].0]).await.message();
    net.post("alice", "s3same-path/enc_keys", r#"{"number":1}"#).await.message();
    net.post("alice", "bob/enc_keys", r#"{"extension_mandatory":[{"x":"s3same-body"}]}"#).await.message();
    net.post("alice", "bob/enc_keys", r#"{"s3same-body"#).await.message();
    net.sites.b.store.close().await;
    net.dec("bob", "alice", &[&made[1].0]).await.message();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in [
        "/api/v1/keys/{slave_SAE_ID}/enc_keys",
        "alice",
        "http.ignored=2",
        "not_entitled",
        "unsupported_extensions",
        "bad_json",
    ] {
        assert!(text.contains(expected), "{expected} is missing in: {text}");
    }
    assert!(!text.contains("s3same"), "{text}");
    for (_, key) in &made {
        let forms = [STANDARD.encode(key), hex::encode(key), hex::encode_upper(key), format!("{key:?}")];
        assert!(forms.iter().all(|form| !text.contains(form)), "a key is in: {text}");
    }
}
