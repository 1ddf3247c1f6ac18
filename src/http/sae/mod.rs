//! ETSI GS QKD 014 V1.1.1 under `/api/v1/keys/`, for SAE certificates.
//!
//! Parses the request, asks [`Delivery`], encodes the answer. `docs/etsi-014.md` maps clauses to files and
//! tests.

mod dec_keys;
mod dto;
mod enc_keys;
mod extensions;
mod openapi;
mod path;
mod refusal;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, Method, header};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

pub use self::dto::key_container;
pub use self::openapi::description;
pub use self::path::{Call, Route};
use super::error::ApiError;
use super::meter::RequestMeters;
use super::middleware::{Edge, EdgeLimits, IgnoredParts, guard};
use super::{extract, json};
use crate::delivery::{Caller, Delivery};
use crate::kme::{KeyLimits, MAX_NAME_BYTES};

/// Room for members of a body that are not looked at.
const BODY_SPARE_BYTES: usize = 32 * 1024;
/// Room for one entry of `key_IDs`, an extension included.
const KEY_ID_ENTRY_BYTES: usize = 160;

#[derive(Clone)]
struct Api {
    delivery: Arc<Delivery>,
    body_max_bytes: usize,
    body_timeout: Duration,
}

/// The routes of the `sae` listener over `delivery`, with their bounds, log lines and panic guard.
///
/// Needs [`crate::identity::ClientIdentity`] in the extensions of every request; without it every answer is 401. Requests are worked
/// on in `tasks`; let a graceful stop wait for it.
pub fn router(
    delivery: Arc<Delivery>,
    limits: EdgeLimits,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> Router {
    let body_max_bytes = body_max_bytes(delivery.limits());
    let edge = Edge::new("sae", limits, tasks, template, meters).without_timeout_for(is_retrieval);
    Router::new()
        .fallback(serve)
        .with_state(Api { delivery, body_max_bytes, body_timeout: limits.body_timeout() })
        .layer(axum::middleware::from_fn_with_state(edge, guard))
}

/// The longest body that can be needed under `limits`.
fn body_max_bytes(limits: &KeyLimits) -> usize {
    let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let key_ids = count(limits.max_per_request).saturating_mul(KEY_ID_ENTRY_BYTES);
    // JSON may write each byte of an ID as six: \u0041.
    let sae_ids = count(limits.max_additional_saes).saturating_mul(6 * MAX_NAME_BYTES);
    BODY_SPARE_BYTES.saturating_add(key_ids.max(sae_ids))
}

fn template(request: &Request) -> &'static str {
    Route::parse(request.uri().path()).map_or("(none)", |route| route.call.template())
}

/// Whether the request uses something up: its body and its wait for the commit have bounds of their own.
fn is_retrieval(request: &Request) -> bool {
    Route::parse(request.uri().path()).is_some_and(|route| matches!(route.call, Call::DecKeys))
}

async fn serve(State(api): State<Api>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(route) = Route::parse(parts.uri.path()) else {
        return ApiError::no_such_path().into_response();
    };
    if !route.call.allows(&parts.method) {
        let mut response = ApiError::method_not_allowed().into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.call.allow()));
        return response;
    }
    match api.answer(route, &parts, body).await {
        Ok(answer) => {
            let mut response = json_response(answer.body);
            response.extensions_mut().insert(IgnoredParts(answer.ignored));
            response
        }
        Err(error) => error.into_response(),
    }
}

/// What is sent back, and how much of the request was not looked at.
struct Answer {
    body: Bytes,
    ignored: usize,
}

impl Api {
    async fn answer(&self, route: Route<'_>, parts: &Parts, body: Body) -> Result<Answer, ApiError> {
        let caller = self.delivery.admit(extract::sae(&parts.extensions)?).map_err(refusal::answer)?;
        let peer = route.id()?;
        match route.call {
            Call::Status => {
                let body = status::serve(&self.delivery, &caller, &peer).await?;
                Ok(Answer { body, ignored: extract::other_names(parts.uri.query(), &[]) })
            }
            Call::EncKeys => {
                let asked = match self.body(parts, body).await? {
                    None => enc_keys::from_query(parts.uri.query())?,
                    Some(body) => enc_keys::from_body(&body)?,
                };
                let body = enc_keys::serve(&self.delivery, &caller, &peer, &asked).await?;
                Ok(Answer { body, ignored: asked.ignored })
            }
            Call::DecKeys => {
                let asked = match self.body(parts, body).await? {
                    None => dec_keys::from_query(parts.uri.query())?,
                    Some(body) => dec_keys::from_body(&body)?,
                };
                let body = dec_keys::serve(&self.delivery, &caller, &peer, &asked).await?;
                Ok(Answer { body, ignored: asked.ignored })
            }
        }
    }

    /// The body of a POST; `None` for a GET, whose body, if any, is not looked at.
    async fn body(&self, parts: &Parts, body: Body) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        if parts.method != Method::POST {
            return Ok(None);
        }
        extract::accept_json(&parts.headers)?;
        // The task outlives the client's patience, so a body that never ends must be given up here.
        tokio::time::timeout(self.body_timeout, json::read_body(body, self.body_max_bytes))
            .await
            .map_err(|_| ApiError::body_slow())?
            .map(Some)
    }
}

fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
