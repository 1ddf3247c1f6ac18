//! The operators' listener: `/healthz`, `/readyz`, `/metrics`, and `/openapi.json` of a KME.
//!
//! On a loopback address it speaks plain HTTP to everyone on the machine; on any other it demands an operator
//! certificate. It shows no secret.

mod readiness;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use mtls::identity::ClientIdentity;
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::guarded::Guarded;
use super::limits::Clients;
use super::meter::RequestMeters;
use super::middleware::{Edge, EdgeLimits};
use crate::metrics::{CONTENT_TYPE, Registry, encode};

pub use self::readiness::ReadinessMeter;

/// The condition of a part of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It works.
    Ok,
    /// It works less well than it should, or something it depends on does not work now.
    Degraded,
    /// It does not work, and the daemon cannot serve without it.
    Failed,
}

/// One part of the daemon and its condition.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Its name, for example `store` or `peer site-b`.
    pub name: String,
    /// Its condition.
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

/// Reports the daemon's condition.
pub trait Health: Send + Sync {
    /// Checks the daemon now, within its own deadline.
    fn look(&self) -> BoxFuture<'_, Readiness>;
}

/// For a few short requests. One client alone gets half of the places.
const LIMITS: EdgeLimits = EdgeLimits { max_concurrent: 64, timeout: Duration::from_secs(10) };
/// No request needs a body.
const BODY_MAX_BYTES: usize = 1024;

/// The metrics in the text form of OpenMetrics.
const METRICS: &str = "/metrics";
/// The SAE API as OpenAPI.
const DESCRIPTION: &str = "/openapi.json";

/// What an admin listener shows, and to whom.
pub struct AdminParts {
    /// Reports the daemon's condition.
    pub health: Arc<dyn Health>,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Set by each request for `/metrics`; belongs to the same registry.
    pub readiness: ReadinessMeter,
    /// Served as `/openapi.json`.
    pub description: Option<String>,
    /// Whether every request needs an operator certificate.
    pub operators_only: bool,
}

/// The routes of the `admin` listener. A graceful stop waits for `tasks`.
pub fn router(parts: AdminParts, tasks: TaskTracker, meters: &RequestMeters) -> Guarded {
    let AdminParts { health, registry, readiness, description, operators_only } = parts;
    let shown = Arc::new(Shown { health: Arc::clone(&health), registry, readiness });
    let router = match description.map(Bytes::from) {
        Some(json) => Router::new().route(DESCRIPTION, get(move || async move { described(json) })),
        None => Router::new(),
    };
    let router = router
        .route("/healthz", get(|| async { Json(serde_json::json!({"alive": true})) }))
        .route("/readyz", get(ready))
        .route(METRICS, get(move || metrics(Arc::clone(&shown))))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(health);
    let router = if operators_only { router.layer(axum::middleware::from_fn(operator)) } else { router };
    let edge = Edge::new(Clients::unlimited("admin"), LIMITS, BODY_MAX_BYTES, tasks, meters);
    Guarded::new(router, edge, template)
}

/// The route template of a request.
fn template(request: &Request) -> &'static str {
    let known =
        ["/healthz", "/readyz", METRICS, DESCRIPTION].into_iter().find(|path| *path == request.uri().path());
    known.unwrap_or("(none)")
}

async fn ready(State(health): State<Arc<dyn Health>>) -> Response {
    let readiness = health.look().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// What `/metrics` is made of.
struct Shown {
    health: Arc<dyn Health>,
    registry: Registry,
    readiness: ReadinessMeter,
}

async fn metrics(shown: Arc<Shown>) -> Result<Response, ApiError> {
    shown.readiness.note(&shown.health.look().await);
    let text = encode(&shown.registry).map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics_failed", "the metrics cannot be written")
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn described(json: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

async fn operator(request: Request, next: Next) -> Response {
    let identity = request.extensions().get::<ClientIdentity>();
    if identity.and_then(ClientIdentity::operator).is_some() {
        next.run(request).await
    } else {
        ApiError::unauthorized("not_an_operator").into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use mtls::{ConnectionService as _, ListenerService as _};

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
        answer(&shown(parts, operators_only), path).await.status()
    }

    async fn answer(router: &Guarded, path: &str) -> Response {
        let connection = router.open(ClientIdentity::none());
        connection.answer(Request::get(path).body(Body::empty()).unwrap()).await
    }

    fn shown(parts: &[Condition], operators_only: bool) -> Guarded {
        let mut registry = crate::metrics::registry();
        let parts = AdminParts {
            health: Arc::new(Fixed(parts.to_vec())),
            readiness: ReadinessMeter::register(&mut registry),
            registry,
            description: Some("{}".to_owned()),
            operators_only,
        };
        router(parts, TaskTracker::new(), &RequestMeters::default())
    }

    #[tokio::test]
    async fn metrics_say_what_readiness_says_in_their_own_type() {
        let router = shown(&[Condition::Degraded], false);
        let response = answer(&router, "/metrics").await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for line in [
            "dqkd_ready 1\n",
            "dqkd_part_condition{part=\"x\",condition=\"degraded\"} 1\n",
            "dqkd_part_condition{part=\"x\",condition=\"ok\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}in {text}");
        }
    }

    #[test]
    fn readiness_as_json() {
        let part = |name: &str, condition, message: Option<&str>| Part {
            name: name.to_owned(),
            condition,
            message: message.map(str::to_owned),
        };
        let readiness = Readiness::of(vec![
            part("store", Condition::Ok, None),
            part("peer site-b", Condition::Degraded, Some("does not answer")),
            part("certificate", Condition::Failed, Some("expired at 2026-01-01T00:00:00Z")),
        ]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&readiness).unwrap(), @r#"
        {
          "ready": false,
          "parts": [
            {
              "name": "store",
              "condition": "ok"
            },
            {
              "name": "peer site-b",
              "condition": "degraded",
              "message": "does not answer"
            },
            {
              "name": "certificate",
              "condition": "failed",
              "message": "expired at 2026-01-01T00:00:00Z"
            }
          ]
        }
        "#);
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
        for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/elsewhere"] {
            assert_eq!(status(&[Condition::Ok], true, path).await, StatusCode::UNAUTHORIZED, "{path}");
        }
    }
}
