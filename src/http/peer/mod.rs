//! The peer protocol's HTTP: `/peer/v1/`, for KME certificates of configured peers only.
//!
//! Parses, asks the intake, encodes. Bodies are secret: they are read into buffers that are wiped, and no
//! error repeats any of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use mtls::identity::{AuthenticatedKme, ClientIdentity};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::json;
use super::meter::RequestMeters;
use super::middleware::{Edge, EdgeLimits, Template, guard};
use crate::peer::SET_UNAVAILABLE;
use crate::peer::wire::{BATCHES_PATH, INFO_PATH, POOL_SETS_PATH, VOID_PATH};
use crate::supply::{Intake, IntakeError};

/// What a refused caller should wait before it asks again.
const RETRY_AFTER_SECS: u32 = 2;

#[derive(Clone)]
struct Peer {
    intake: Arc<Intake>,
    body_max_bytes: usize,
    body_timeout: Duration,
}

/// The routes of the `peer` listener over `intake`, with their bounds, log lines and panic guard.
///
/// Needs [`ClientIdentity`] in the extensions of every request; without it every answer is 401. Requests are
/// worked on in `tasks`; let a graceful stop wait for it.
pub fn router(
    intake: Arc<Intake>,
    limits: EdgeLimits,
    body_max_bytes: usize,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> Router {
    let edge = Edge::new("peer", limits, tasks, meters);
    Router::new()
        .route(POOL_SETS_PATH, post(pool_sets))
        .route(BATCHES_PATH, post(batches))
        .route(VOID_PATH, post(void))
        .route(INFO_PATH, get(info))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(Peer { intake, body_max_bytes, body_timeout: limits.body_timeout() })
        .layer(axum::middleware::from_fn_with_state((edge, template as Template), guard))
}

fn template(request: &Request) -> &'static str {
    let known = [POOL_SETS_PATH, BATCHES_PATH, VOID_PATH, INFO_PATH];
    known.into_iter().find(|path| *path == request.uri().path()).unwrap_or("(none)")
}

async fn pool_sets(State(peer): State<Peer>, request: Request) -> Result<Response, ApiError> {
    let (caller, announced) = peer.open(request).await?;
    peer.intake.accept_set(&caller, &announced).await.map(answer).map_err(refusal)
}

async fn batches(State(peer): State<Peer>, request: Request) -> Result<Response, ApiError> {
    let (caller, batch) = peer.open(request).await?;
    peer.intake.accept_batch(&caller, batch).await.map(answer).map_err(refusal)
}

async fn void(State(peer): State<Peer>, request: Request) -> Result<Response, ApiError> {
    let (caller, voided) = peer.open(request).await?;
    peer.intake.void(&caller, &voided).await.map(answer).map_err(refusal)
}

async fn info(State(peer): State<Peer>, request: Request) -> Result<Response, ApiError> {
    peer.intake.info(&caller(&request)?).map(answer).map_err(refusal)
}

impl Peer {
    /// The caller and its message. Nothing of the body is read for a caller without a KME certificate.
    async fn open<T: DeserializeOwned>(&self, request: Request) -> Result<(AuthenticatedKme, T), ApiError> {
        let caller = caller(&request)?;
        let body: Body = request.into_body();
        let body = tokio::time::timeout(self.body_timeout, json::read_body(body, self.body_max_bytes))
            .await
            .map_err(|_| ApiError::body_slow())??;
        Ok((caller, json::parse(&body)?))
    }
}

fn caller(request: &Request) -> Result<AuthenticatedKme, ApiError> {
    request
        .extensions()
        .get::<ClientIdentity>()
        .and_then(ClientIdentity::kme)
        .cloned()
        .ok_or_else(|| ApiError::unauthorized("not_a_kme"))
}

fn answer(value: impl Serialize) -> Response {
    let mut response = Json(value).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refusal(error: IntakeError) -> ApiError {
    let message = error.to_string();
    match error {
        IntakeError::NotAllowed(_) => ApiError::new(StatusCode::FORBIDDEN, "not_allowed", message),
        IntakeError::Refused(_) => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "push_refused", message),
        IntakeError::Conflict => ApiError::new(StatusCode::CONFLICT, "push_conflict", message),
        IntakeError::Voided => ApiError::new(StatusCode::GONE, "batch_voided", message),
        IntakeError::SetUnavailable(_) => ApiError::new(SET_UNAVAILABLE, "pool_set_unavailable", message),
        IntakeError::Unavailable(_) => ApiError::unavailable("intake_unavailable", message, RETRY_AFTER_SECS),
    }
}
