//! The pool server's HTTP: `/pool/v1/`, for KME certificates only.
//!
//! Parses, asks the vault, encodes. Who may read what is the vault's to decide; what a refusal looks like
//! on the wire is decided here, the same for unknown, foreign and expired pools.

mod stream;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, Method, StatusCode, header};
use kme::{KmeId, PoolId};
use mtls::identity::ClientIdentity;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::pool::wire::{CreateRequest, CreateResponse, POOLS_PATH, ReaderCount, ReadsResponse};
use crate::pool::{PoolRequest, PoolVault, VaultError};

use super::error::ApiError;
use super::json;
use super::meter::RequestMeters;
use super::middleware::{Edge, EdgeLimits, Template, guard};

/// Longest body of a request.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// Longest wait of a request for its turn to fill a pool.
const FILL_WAIT_MAX: Duration = Duration::from_secs(10);

/// Pools filled at once; filling is all CPU.
const FILLS_MAX: usize = 2;

/// What a refused caller should wait before it asks again.
const RETRY_AFTER_SECS: u32 = 5;

#[derive(Clone)]
struct Server {
    vault: Arc<PoolVault>,
    fills: Arc<Semaphore>,
}

/// The routes of a pool server over `vault`.
///
/// Needs [`ClientIdentity`] in the extensions of every request; without it every answer is 401. Requests are
/// worked on in `tasks`; let a graceful stop wait for it. `limits.timeout` is for the head of an answer: a
/// download has bounds of its own.
pub fn router(
    vault: Arc<PoolVault>,
    limits: EdgeLimits,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> Router {
    let edge = Edge::new("pool", limits, tasks, meters);
    let one = format!("{POOLS_PATH}/{{id}}");
    let reads = format!("{POOLS_PATH}/{{id}}/reads");
    Router::new()
        .route(POOLS_PATH, post(create))
        .route(&one, get(download).delete(release))
        .route(&reads, get(read_counts))
        .fallback(|| async { ApiError::no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .with_state(Server { vault, fills: Arc::new(Semaphore::new(FILLS_MAX)) })
        .layer(axum::middleware::from_fn_with_state((edge, template as Template), guard))
}

/// For logs: never the pool's ID, which is in the events that tell of it.
fn template(request: &Request) -> &'static str {
    let rest = request.uri().path().strip_prefix(POOLS_PATH);
    match rest.map(|rest| rest.split('/').count()) {
        Some(1) => POOLS_PATH,
        Some(2) => "/pool/v1/pools/{id}",
        Some(3) => "/pool/v1/pools/{id}/reads",
        _ => "(none)",
    }
}

async fn create(State(server): State<Server>, request: Request) -> Result<Response, ApiError> {
    let owner = caller(&request)?;
    let body = json::read_body(request.into_body(), BODY_MAX_BYTES).await?;
    let asked: CreateRequest = json::parse(&body)?;
    let asked = PoolRequest {
        // Larger than the address space is larger than any limit: the vault's refusal names the range.
        words: usize::try_from(asked.words).unwrap_or(usize::MAX),
        readers: asked.readers,
        ttl: asked.ttl.0,
    };
    let permit = tokio::time::timeout(FILL_WAIT_MAX, Arc::clone(&server.fills).acquire_owned())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| {
            ApiError::unavailable("pool_fill_busy", "other pools are being made", RETRY_AFTER_SECS)
        })?;
    let reserved = server.vault.reserve(&owner, asked).map_err(refusal)?;
    let made = tokio::task::spawn_blocking(move || {
        let made = reserved.fill();
        drop(permit);
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
    Ok(no_store((StatusCode::CREATED, Json(answer)).into_response()))
}

async fn download(
    State(server): State<Server>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let reader = caller(&request)?;
    // axum routes HEAD here too, but it must not count as a read.
    if request.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let open = server.vault.open(pool_id(&id)?, &reader).map_err(refusal)?;
    tracing::info!(reader = %reader, pool = %id, "pool download begins");
    let mut response = Response::new(Body::new(stream::PoolBody::new(open)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(no_store(response))
}

async fn release(
    State(server): State<Server>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let owner = caller(&request)?;
    server.vault.delete(pool_id(&id)?, &owner).map_err(refusal)?;
    tracing::info!(owner = %owner, pool = %id, "pool released");
    Ok(no_store(StatusCode::NO_CONTENT.into_response()))
}

async fn read_counts(
    State(server): State<Server>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let owner = caller(&request)?;
    let reads = server.vault.reads(pool_id(&id)?, &owner).map_err(refusal)?;
    let readers = reads
        .readers
        .into_iter()
        .map(|count| ReaderCount { reader: count.reader, started: count.started, completed: count.completed })
        .collect();
    Ok(no_store(Json(ReadsResponse { readers }).into_response()))
}

/// The KME that the caller's certificate names; nobody else has any business here.
fn caller(request: &Request) -> Result<KmeId, ApiError> {
    request
        .extensions()
        .get::<ClientIdentity>()
        .and_then(ClientIdentity::kme)
        .map(|kme| kme.id().clone())
        .ok_or_else(|| ApiError::unauthorized("not_a_kme"))
}

/// An ID that is no UUID names no pool: the same 404 as for any other.
fn pool_id(text: &str) -> Result<PoolId, ApiError> {
    text.parse().map_err(|_| no_such_pool())
}

fn no_such_pool() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_such_pool", "no such pool")
}

fn refusal(error: VaultError) -> ApiError {
    match error {
        VaultError::Refused(text) => ApiError::bad_request("pool_refused", text),
        VaultError::NotFound => no_such_pool(),
        VaultError::Full(_) => ApiError::unavailable("pool_server_full", error.to_string(), RETRY_AFTER_SECS),
        VaultError::Random(_) | VaultError::Memory(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a pool could not be made");
            ApiError::unavailable("pool_fill_failed", "the pool could not be made", RETRY_AFTER_SECS)
        }
    }
}

fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
