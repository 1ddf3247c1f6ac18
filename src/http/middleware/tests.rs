//! The guard around routers that misbehave on purpose.

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post};
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt as _;
use mtls::identity::Identity;
use mtls::{ConnectionService as _, ListenerService as _};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::http::guarded::Guarded;

const LIMITS: EdgeLimits = EdgeLimits { max_concurrent: 2, timeout: Duration::from_secs(30) };

const BODY_MAX: usize = 256 * 1024;

fn template(_: &Request) -> &'static str {
    "/route"
}

fn edge(limits: EdgeLimits, tasks: &TaskTracker) -> Edge {
    Edge::new(Clients::unlimited("test"), limits, BODY_MAX, tasks.clone(), &RequestMeters::default())
}

fn edged(router: Router, limits: EdgeLimits, tasks: &TaskTracker) -> Guarded {
    Guarded::new(router, edge(limits, tasks), template)
}

fn sae(name: &str) -> ClientIdentity {
    ClientIdentity::new(Ok(Identity::Sae(testkit::authenticated_sae(name))))
}

async fn call(router: &Guarded, path: &str) -> (StatusCode, Option<String>, String) {
    call_as(router, "alice", path).await
}

async fn call_as(router: &Guarded, name: &str, path: &str) -> (StatusCode, Option<String>, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    taken_apart(router.open(sae(name)).answer(request).await).await
}

async fn taken_apart(response: Response) -> (StatusCode, Option<String>, String) {
    let retry = response.headers().get(header::RETRY_AFTER);
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let (status, retry) = (response.status(), retry.map(|value| value.to_str().unwrap().to_owned()));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, retry, String::from_utf8(text.to_vec()).unwrap())
}

fn unavailable(message: &str, retry: &str) -> (StatusCode, Option<String>, String) {
    (StatusCode::SERVICE_UNAVAILABLE, Some(retry.to_owned()), format!(r#"{{"message":"{message}"}}"#))
}

#[tokio::test]
async fn answers_pass_through_untouched() {
    let tasks = TaskTracker::new();
    let router =
        edged(Router::new().route("/", get(async || (StatusCode::IM_A_TEAPOT, "tea"))), LIMITS, &tasks);
    assert_eq!(call(&router, "/").await, (StatusCode::IM_A_TEAPOT, None, "tea".to_owned()));
}

#[tokio::test]
async fn a_panic_is_503_without_its_text_and_frees_its_place() {
    async fn fails() -> &'static str {
        let key = String::from("s3same");
        panic!("{key}")
    }
    let tasks = TaskTracker::new();
    let router = Router::new().route("/panic", get(fails)).route("/", get(async || "well"));
    let router = edged(router, EdgeLimits { max_concurrent: 1, ..LIMITS }, &tasks);
    for _ in 0..3 {
        assert_eq!(call(&router, "/panic").await, unavailable("the KME failed to serve the request", "5"));
    }
    assert_eq!(call(&router, "/").await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_is_503_and_its_work_goes_on_to_its_end() {
    let tasks = TaskTracker::new();
    let (signal, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (signal, done) = (Arc::clone(&signal), Arc::clone(&done));
        async move || {
            signal.notified().await;
            done.notify_one();
        }
    };
    let router = edged(Router::new().route("/", get(slow)), LIMITS, &tasks);
    // The test's clock advances only when all tasks wait for it.
    assert_eq!(call(&router, "/").await, unavailable("the request took too long", "5"));
    assert_eq!(tasks.len(), 1, "still at work");
    signal.notify_one();
    done.notified().await;
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn requests_over_the_bound_are_refused_at_once_and_served_when_there_is_room() {
    let tasks = TaskTracker::new();
    let (arrived, signal) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let waits = {
        let (arrived, signal) = (Arc::clone(&arrived), Arc::clone(&signal));
        async move || {
            arrived.add_permits(1);
            signal.acquire().await.unwrap().forget();
            "served"
        }
    };
    let router = edged(Router::new().route("/", get(waits)), LIMITS, &tasks);
    let spawned = |name: &'static str| {
        let router = router.clone();
        tokio::spawn(async move { call_as(&router, name, "/").await })
    };
    let under_way = [spawned("alice"), spawned("bob")];
    arrived.acquire_many(2).await.unwrap().forget();
    assert_eq!(call_as(&router, "carol", "/").await, unavailable("too many requests", "1"));
    assert_eq!(call(&router, "/").await, unavailable("too many requests", "1"));
    signal.add_permits(2);
    for one in under_way {
        assert_eq!(one.await.unwrap().2, "served");
    }
    signal.add_permits(1);
    assert_eq!(call(&router, "/").await.2, "served");
}

#[tokio::test]
async fn a_bound_of_no_requests_means_one() {
    let tasks = TaskTracker::new();
    let limits = EdgeLimits { max_concurrent: 0, ..LIMITS };
    let router = edged(Router::new().route("/", get(async || "served")), limits, &tasks);
    assert_eq!(call(&router, "/").await.2, "served");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ends_by_itself_is_waited_for() {
    let edge = edge(LIMITS, &TaskTracker::new());
    let alice = edge.client(sae("alice"));
    for (ends_by_itself, status) in [(true, StatusCode::OK), (false, StatusCode::SERVICE_UNAVAILABLE)] {
        let slow = async {
            tokio::time::sleep(2 * LIMITS.timeout).await;
            Response::new(Body::from("the truth"))
        };
        let about = About { method: Method::GET, route: "/route", ends_by_itself };
        assert_eq!(edge.serve(about, &alice, slow).await.status(), status);
    }
}

#[tokio::test]
async fn what_is_answered_at_once_is_bounded_and_its_panics_are_caught() {
    let tasks = TaskTracker::new();
    let signal = Arc::new(Notify::new());
    let waits = {
        let signal = Arc::clone(&signal);
        async move || signal.notified().await
    };
    let panics = async || -> StatusCode { panic!("a defect") };
    let router = Router::new()
        .route("/", get(async || StatusCode::IM_A_TEAPOT))
        .route("/panic", get(panics))
        .route("/waits", get(waits));
    let router = edged(router, EdgeLimits { max_concurrent: 1, ..LIMITS }, &tasks);
    for _ in 0..2 {
        assert_eq!(call(&router, "/").await.0, StatusCode::IM_A_TEAPOT);
        assert_eq!(call(&router, "/panic").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    let waiting = {
        let router = router.clone();
        tokio::spawn(async move { call(&router, "/waits").await })
    };
    while tasks.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(call(&router, "/").await.0, StatusCode::SERVICE_UNAVAILABLE);
    signal.notify_one();
    assert_eq!(waiting.await.unwrap().0, StatusCode::OK);
    assert_eq!(call(&router, "/").await.0, StatusCode::IM_A_TEAPOT);
}

#[tokio::test]
async fn one_identity_with_many_connections_leaves_places_for_whoever_comes() {
    let tasks = TaskTracker::new();
    let (at_work, signal) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let waits = {
        let (at_work, signal) = (Arc::clone(&at_work), Arc::clone(&signal));
        async move || {
            at_work.add_permits(1);
            signal.acquire().await.unwrap().forget();
        }
    };
    let router = edged(
        Router::new().route("/", get(waits)).route("/quick", get(async || "served")),
        EdgeLimits { max_concurrent: 16, ..LIMITS },
        &tasks,
    );
    let greedy: Vec<_> = (0..40)
        .map(|_| {
            let router = router.clone();
            tokio::spawn(async move { call_as(&router, "mallory", "/").await.0 })
        })
        .collect();
    at_work.acquire_many(8).await.unwrap().forget();
    for name in ["alice", "bob", "carol"] {
        assert_eq!(call_as(&router, name, "/quick").await.0, StatusCode::OK, "{name}");
    }
    signal.add_permits(100);
    let served =
        join_all(greedy).await.into_iter().filter(|status| *status.as_ref().unwrap() == StatusCode::OK);
    assert_eq!(served.count(), 8, "half of the places; the others were refused at once");
}

fn withheld() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<&'static str, std::io::Error>>())
}

#[tokio::test(start_paused = true)]
async fn a_request_without_its_body_takes_no_place_and_bodies_that_arrive_have_a_bounded_memory() {
    let tasks = TaskTracker::new();
    let router = Router::new().route("/", post(async |body: String| body));
    let router = edged(router, EdgeLimits { max_concurrent: 4, ..LIMITS }, &tasks);
    let post = |name: &str, body: Body| {
        let connection = router.open(sae(name));
        async move { taken_apart(connection.answer(Request::post("/").body(body).unwrap()).await).await }
    };
    let heads: Vec<_> = (0..2500).map(|_| tokio::spawn(post("mallory", withheld()))).collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks.len(), ARRIVING_MAX_BYTES / BODY_MAX / 2, "half of the memory, and no place");
    for name in ["alice", "bob"] {
        assert_eq!(post(name, Body::from("whole")).await.2, "whole", "{name}");
        // In two pieces, the second a moment later.
        let later = futures_util::stream::unfold(0, async |piece| match piece {
            0 => Some((Ok::<_, std::io::Error>("in "), 1)),
            1 => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Some((Ok("pieces"), 2))
            }
            _ => None,
        });
        assert_eq!(post(name, Body::from_stream(later)).await.2, "in pieces", "{name}");
    }
    // The test's clock advances when everybody waits: what was withheld ends after half of the timeout.
    let mut texts: Vec<String> = join_all(heads).await.into_iter().map(|answer| answer.unwrap().2).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(
        texts,
        [
            r#"{"message":"the request body did not arrive in time"}"#,
            r#"{"message":"too many request bodies"}"#
        ]
    );
}
