//! The guard around routers that misbehave on purpose.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt as _;

use super::*;

const LIMITS: EdgeLimits = EdgeLimits { max_concurrent: 2, timeout: Duration::from_secs(30) };

fn template(_: &Request) -> &'static str {
    "/route"
}

fn edged(router: Router, limits: EdgeLimits, tasks: &TaskTracker) -> Router {
    let edge = Edge::new("test", limits, tasks.clone(), &RequestMeters::default());
    router.layer(axum::middleware::from_fn_with_state((edge, template as Template), guard))
}

async fn call(router: &Router, path: &str) -> (StatusCode, Option<String>, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
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
    let spawned = || {
        let router = router.clone();
        tokio::spawn(async move { call(&router, "/").await })
    };
    let under_way = [spawned(), spawned()];
    arrived.acquire_many(2).await.unwrap().forget();
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
    let edge = Edge::new("test", LIMITS, TaskTracker::new(), &RequestMeters::default());
    for (ends_by_itself, status) in [(true, StatusCode::OK), (false, StatusCode::SERVICE_UNAVAILABLE)] {
        let slow = async {
            tokio::time::sleep(2 * LIMITS.timeout).await;
            Response::new(Body::from("the truth"))
        };
        let about = About { method: Method::GET, route: "/route", caller: None, ends_by_itself };
        assert_eq!(edge.serve(about, slow).await.status(), status);
    }
}

#[tokio::test]
async fn what_is_answered_at_once_is_bounded_and_its_panics_are_caught() {
    let edge = Edge::new(
        "test",
        EdgeLimits { max_concurrent: 1, ..LIMITS },
        TaskTracker::new(),
        &RequestMeters::default(),
    );
    let about = || About { method: Method::GET, route: "/route", caller: None, ends_by_itself: false };
    let answered = async || StatusCode::IM_A_TEAPOT.into_response();
    for _ in 0..2 {
        assert_eq!(edge.serve(about(), answered()).await.status(), StatusCode::IM_A_TEAPOT);
        let panics = async || -> Response { panic!("a defect") };
        assert_eq!(edge.serve(about(), panics()).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let signal = Arc::new(Notify::new());
    let waits = {
        let signal = Arc::clone(&signal);
        let work = async move {
            signal.notified().await;
            StatusCode::OK.into_response()
        };
        tokio::spawn(edge.serve(about(), work))
    };
    tokio::task::yield_now().await;
    assert_eq!(edge.serve(about(), answered()).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    signal.notify_one();
    assert_eq!(waits.await.unwrap().status(), StatusCode::OK);
    assert_eq!(edge.serve(about(), answered()).await.status(), StatusCode::IM_A_TEAPOT);
}
