//! The `peer` listener: `/peer/v1/`, for KME certificates of configured peers.
//!
//! Parses the request, asks the intake, encodes the answer. Bodies are secret: they are read into wiped
//! buffers, and no error quotes them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use mtls::identity::AuthenticatedKme;
use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::guarded::Guarded;
use super::limits::Clients;
use super::meter::RequestMeters;
use super::middleware::{Client, Edge, EdgeLimits};
use super::{extract, json};
use crate::peer::wire::{
    BATCHES_PATH, COMPARISON_PATH, ComparisonAnswer, INFO_PATH, Info, POOL_SETS_PATH, Push, SetReady,
    VOID_PATH, VoidAnswer,
};
use crate::peer::{QUOTA_FULL, SET_UNAVAILABLE};
use crate::supply::{Intake, IntakeError};

/// `Retry-After` of a 503.
const RETRY_AFTER_SECS: u32 = 2;

#[derive(Clone)]
struct PeerApi {
    intake: Arc<Intake>,
    edge: Edge,
    body_max_bytes: usize,
}

/// The routes of the `peer` listener for `clients`. A graceful stop waits for `tasks`.
///
/// A request without [`mtls::identity::ClientIdentity`] in its extensions is answered 401.
pub fn router(
    intake: Arc<Intake>,
    clients: Arc<Clients>,
    limits: EdgeLimits,
    body_max_bytes: usize,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> Guarded {
    let edge = Edge::new(clients, limits, body_max_bytes, tasks, meters);
    let router = Router::new()
        .route(POOL_SETS_PATH, post(pool_sets))
        .route(COMPARISON_PATH, post(comparison))
        .route(BATCHES_PATH, post(batches))
        .route(VOID_PATH, post(void))
        .route(INFO_PATH, get(info))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(PeerApi { intake, edge: edge.clone(), body_max_bytes });
    Guarded::new(router, edge, template)
}

fn template(request: &Request) -> &'static str {
    let known = [POOL_SETS_PATH, COMPARISON_PATH, BATCHES_PATH, VOID_PATH, INFO_PATH];
    known.into_iter().find(|path| *path == request.uri().path()).unwrap_or("(none)")
}

async fn pool_sets(State(api): State<PeerApi>, request: Request) -> Result<Json<SetReady>, ApiError> {
    let (caller, announced) = api.open(request).await?;
    api.intake.accept_set(&caller, &announced).await.map(Json).map_err(refusal)
}

async fn comparison(
    State(api): State<PeerApi>,
    request: Request,
) -> Result<Json<ComparisonAnswer>, ApiError> {
    let (caller, asked) = api.open(request).await?;
    api.intake.compare(&caller, asked).await.map(Json).map_err(refusal)
}

async fn batches(State(api): State<PeerApi>, request: Request) -> Result<Response, ApiError> {
    let client = request.extensions().get::<Arc<Client>>().cloned();
    let (caller, push) = api.open(request).await?;
    let (batches, is_list) = match push {
        Push::One(batch) => (vec![batch], false),
        Push::List(batches) => (batches, true),
    };
    if let Some(client) = client {
        api.edge.take_keys(&client, batches.iter().map(|batch| batch.key_ids.len()).sum())?;
    }
    let stored = api.intake.accept_batches(&caller, batches).await.map_err(refusal)?;
    Ok(match stored.as_slice() {
        [one] if !is_list => Json(one).into_response(),
        stored => Json(stored).into_response(),
    })
}

async fn void(State(api): State<PeerApi>, request: Request) -> Result<Json<VoidAnswer>, ApiError> {
    let (caller, voided) = api.open(request).await?;
    api.intake.void(&caller, &voided).await.map(Json).map_err(refusal)
}

async fn info(State(api): State<PeerApi>, request: Request) -> Result<Json<Info>, ApiError> {
    api.intake.info(&extract::kme(&request)?).map(Json).map_err(refusal)
}

impl PeerApi {
    /// The caller and its message.
    async fn open<T: DeserializeOwned>(&self, request: Request) -> Result<(AuthenticatedKme, T), ApiError> {
        let caller = extract::kme(&request)?;
        let body = json::read_body(request.into_body(), self.body_max_bytes).await?;
        Ok((caller, json::parse(&body)?))
    }
}

fn refusal(error: IntakeError) -> ApiError {
    let message = error.to_string();
    let trouble = error.set_trouble();
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    let mut answer = match error {
        IntakeError::NotAllowed(_) => ApiError::new(StatusCode::FORBIDDEN, "not_allowed", message),
        IntakeError::Refused(_) => ApiError::new(unprocessable, "push_refused", message),
        IntakeError::TooFewPools { .. } => ApiError::new(unprocessable, "too_few_pools", message),
        IntakeError::Mismatch => ApiError::new(unprocessable, "confirmation_mismatch", message),
        IntakeError::Conflict => ApiError::new(StatusCode::CONFLICT, "push_conflict", message),
        IntakeError::Voided => ApiError::new(StatusCode::GONE, "batch_voided", message),
        IntakeError::SetUnavailable { .. } => ApiError::new(SET_UNAVAILABLE, "pool_set_unavailable", message),
        IntakeError::NothingToCompare => ApiError::new(StatusCode::NOT_FOUND, "nothing_to_compare", message),
        IntakeError::Full(_) => ApiError::new(QUOTA_FULL, "quota_kme", message),
        IntakeError::Unavailable(_) => ApiError::unavailable("intake_unavailable", message, RETRY_AFTER_SECS),
    };
    // The source acts upon this; the message is for people.
    answer.details.extend(trouble.and_then(|trouble| serde_json::to_value(trouble).ok()));
    answer
}
