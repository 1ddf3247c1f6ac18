//! The operators' listener: `/healthz`, `/readyz`, and `/openapi.json` of a KME.
//!
//! Plain HTTP on a loopback address is open to everyone on the machine and tells nothing secret; any other
//! address demands an operator certificate.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::middleware::{Edge, EdgeLimits, guard};
use crate::identity::ClientIdentity;

/// How a part of the daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It works.
    Ok,
    /// It works less well than it should, or depends on something that does not work now.
    Degraded,
    /// Without it the daemon cannot serve.
    Failed,
}

/// One part of the daemon and how it is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Its name, for example `store` or `peer site-b`.
    pub name: String,
    /// How it is doing.
    pub condition: Condition,
    /// What an operator should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Answer to `/readyz`.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    /// Whether requests should be sent here.
    pub ready: bool,
    /// All parts.
    pub parts: Vec<Part>,
}

impl Readiness {
    /// Ready unless a part has failed.
    pub fn of(parts: Vec<Part>) -> Self {
        Self { ready: parts.iter().all(|part| part.condition != Condition::Failed), parts }
    }
}

/// Who knows how the daemon is doing.
pub trait Health: Send + Sync {
    /// Looks now; ends by a deadline of its own.
    fn look(&self) -> BoxFuture<'_, Readiness>;
}

/// Few ask, and nobody for long.
const LIMITS: EdgeLimits = EdgeLimits { max_concurrent: 32, timeout: Duration::from_secs(10) };

/// The SAE API in OpenAPI.
const DESCRIPTION: &str = "/openapi.json";

/// The routes of the `admin` listener. With `operators_only` every request needs an operator certificate.
/// `description` is served as `/openapi.json`. Requests are worked on in `tasks`.
pub fn router(
    health: Arc<dyn Health>,
    description: Option<String>,
    operators_only: bool,
    tasks: TaskTracker,
) -> Router {
    let router = match description.map(Bytes::from) {
        Some(json) => Router::new().route(DESCRIPTION, get(move || async move { described(json) })),
        None => Router::new(),
    };
    let router = router
        .route("/healthz", get(|| async { no_store(Json(serde_json::json!({"alive": true}))) }))
        .route("/readyz", get(ready))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(health);
    let router = if operators_only { router.layer(axum::middleware::from_fn(operator)) } else { router };
    let edge = Edge::new("admin", LIMITS, tasks, template);
    router.layer(axum::middleware::from_fn_with_state(edge, guard))
}

/// For logs.
fn template(request: &Request) -> Cow<'static, str> {
    let known = ["/healthz", "/readyz", DESCRIPTION].into_iter().find(|path| *path == request.uri().path());
    known.unwrap_or("(none)").into()
}

async fn ready(State(health): State<Arc<dyn Health>>) -> Response {
    let readiness = health.look().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, no_store(Json(readiness))).into_response()
}

fn described(json: Bytes) -> Response {
    let mut response = no_store(json);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn operator(request: Request, next: Next) -> Response {
    let identity = request.extensions().get::<ClientIdentity>();
    if identity.and_then(ClientIdentity::operator).is_some() {
        next.run(request).await
    } else {
        ApiError::unauthorized("not_an_operator").into_response()
    }
}

fn no_store(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;

    struct Fixed(Vec<Condition>);

    impl Health for Fixed {
        fn look(&self) -> BoxFuture<'_, Readiness> {
            let part = |condition| Part { name: "x".to_owned(), condition, message: None };
            let parts = self.0.iter().copied().map(part).collect();
            Box::pin(async { Readiness::of(parts) })
        }
    }

    async fn status(parts: &[Condition], operators_only: bool, path: &str) -> StatusCode {
        let health = Arc::new(Fixed(parts.to_vec()));
        let router = router(health, Some("{}".to_owned()), operators_only, TaskTracker::new());
        router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_degraded_daemon_is_ready_and_one_with_a_failed_part_is_not() {
        assert_eq!(status(&[Condition::Ok, Condition::Degraded], false, "/readyz").await, StatusCode::OK);
        let failed = &[Condition::Ok, Condition::Failed];
        assert_eq!(status(failed, false, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(failed, false, "/healthz").await, StatusCode::OK);
    }

    #[tokio::test]
    async fn without_an_operator_certificate_nothing_is_shown_where_one_is_needed() {
        for path in ["/healthz", "/readyz", "/openapi.json", "/elsewhere"] {
            assert_eq!(status(&[Condition::Ok], true, path).await, StatusCode::UNAUTHORIZED, "{path}");
        }
    }
}
