//! The `pool` listener: `/pool/v1/`, for KME certificates.
//!
//! Parses the request, asks the vault, encodes the answer. The vault decides who may read what. Unknown,
//! foreign and expired pools get the same answer.

mod creations;
mod stream;

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{Method, StatusCode, header};
use kme::PoolId;
use mtls::identity::AuthenticatedKme;
use tokio_util::task::TaskTracker;

use crate::pool::wire::{CreateRequest, CreateResponse, POOLS_PATH, ReaderCount, ReadsResponse};
use crate::pool::{PoolRequest, PoolVault, VaultError};

use self::creations::Creations;
use super::error::ApiError;
use super::guarded::Guarded;
use super::limits::Clients;
use super::meter::RequestMeters;
use super::middleware::{Edge, EdgeLimits};
use super::{extract, json};

/// Longest body of a request.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// `Retry-After` of a 503.
const RETRY_AFTER_SECS: u32 = 5;

#[derive(Clone)]
struct PoolApi {
    vault: Arc<PoolVault>,
    creations: Arc<Creations>,
}

impl PoolApi {
    /// The KME that asks, if this server serves it.
    fn caller(&self, request: &Request) -> Result<AuthenticatedKme, ApiError> {
        let kme = extract::kme(request)?;
        self.vault.admit(kme.id()).map_err(refusal)?;
        Ok(kme)
    }
}

/// The routes of the `pool` listener for `clients`. A graceful stop waits for `tasks`.
///
/// A request without [`mtls::identity::ClientIdentity`] in its extensions is answered 401. `limits.timeout`
/// bounds the head of an answer; the vault bounds a download. Each KME may make `creations_per_minute` pools.
pub fn router(
    vault: Arc<PoolVault>,
    clients: Arc<Clients>,
    limits: EdgeLimits,
    creations_per_minute: NonZeroU32,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> Guarded {
    let edge = Edge::new(clients, limits, BODY_MAX_BYTES, tasks, meters);
    let one = format!("{POOLS_PATH}/{{id}}");
    let reads = format!("{POOLS_PATH}/{{id}}/reads");
    let router = Router::new()
        .route(POOLS_PATH, post(create))
        .route(&one, get(download).delete(release))
        .route(&reads, get(read_counts))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(PoolApi { vault, creations: Creations::new(creations_per_minute) });
    Guarded::new(router, edge, template)
}

/// The route template of a request.
fn template(request: &Request) -> &'static str {
    let rest = request.uri().path().strip_prefix(POOLS_PATH);
    match rest.map(|rest| rest.split('/').count()) {
        Some(1) => POOLS_PATH,
        Some(2) => "/pool/v1/pools/{id}",
        Some(3) => "/pool/v1/pools/{id}/reads",
        _ => "(none)",
    }
}

async fn create(State(api): State<PoolApi>, request: Request) -> Result<Response, ApiError> {
    let kme = api.caller(&request)?;
    let owner = kme.id();
    let body = json::read_body(request.into_body(), BODY_MAX_BYTES).await?;
    let asked: CreateRequest = json::parse(&body)?;
    let asked = PoolRequest {
        // A number that does not fit exceeds every limit: the vault refuses it and names the range.
        words: usize::try_from(asked.words).unwrap_or(usize::MAX),
        readers: asked.readers,
        ttl: asked.ttl.0,
    };
    let turn = api.creations.turn(owner).await?;
    let reserved = api.vault.reserve(owner, asked).map_err(refusal)?;
    let made = tokio::task::spawn_blocking(move || {
        let made = reserved.fill();
        drop(turn);
        made
    })
    .await
    .map_err(|_| ApiError::unavailable("pool_fill_failed", "the pool could not be made", RETRY_AFTER_SECS))?
    .map_err(refusal)?;
    tracing::info!(owner = %owner, pool = %made.pool_id, expires_at = %made.expires_at, "pool made");
    let answer = CreateResponse {
        pool_id: made.pool_id,
        expires_at: made.expires_at,
        entropy_source: made.entropy_source.to_owned(),
    };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn download(
    State(api): State<PoolApi>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let kme = api.caller(&request)?;
    let reader = kme.id();
    // axum also routes HEAD here, which must not count as a read.
    if request.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let open = api.vault.open(pool_id(&id)?, reader).map_err(refusal)?;
    tracing::info!(reader = %reader, pool = %id, "pool download begins");
    let body = Body::new(stream::PoolBody::new(open));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

async fn release(
    State(api): State<PoolApi>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let kme = api.caller(&request)?;
    let owner = kme.id();
    api.vault.delete(pool_id(&id)?, owner).map_err(refusal)?;
    tracing::info!(owner = %owner, pool = %id, "pool released");
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn read_counts(
    State(api): State<PoolApi>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let kme = api.caller(&request)?;
    let owner = kme.id();
    let reads = api.vault.reads(pool_id(&id)?, owner).map_err(refusal)?;
    let readers = reads
        .readers
        .into_iter()
        .map(|count| ReaderCount { reader: count.reader, started: count.started, completed: count.completed })
        .collect();
    Ok(Json(ReadsResponse { readers }).into_response())
}

/// An ID that is not a UUID names no pool: 404 as for any other.
fn pool_id(text: &str) -> Result<PoolId, ApiError> {
    text.parse().map_err(|_| no_such_pool())
}

fn no_such_pool() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_such_pool", "no such pool")
}

fn refusal(error: VaultError) -> ApiError {
    match error {
        VaultError::Refused(text) => ApiError::bad_request("pool_refused", text),
        VaultError::NotListed(_) => ApiError::new(StatusCode::FORBIDDEN, "not_listed", error.to_string()),
        VaultError::NotFound => no_such_pool(),
        VaultError::Full(_) => ApiError::unavailable("pool_server_full", error.to_string(), RETRY_AFTER_SECS),
        VaultError::Random(_) | VaultError::Memory(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a pool could not be made");
            ApiError::unavailable("pool_fill_failed", "the pool could not be made", RETRY_AFTER_SECS)
        }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
