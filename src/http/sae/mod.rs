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

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, Method, header};
use kme::{KeyLimits, MAX_NAME_BYTES};
use mtls::identity::ClientIdentity;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

pub use self::dto::key_container;
pub use self::openapi::description;
pub use self::path::{Call, Route};
use super::error::ApiError;
use super::meter::RequestMeters;
use super::middleware::{About, Edge, EdgeLimits, IgnoredParts};
use super::{extract, json};
use crate::delivery::{Caller, Delivery};

/// Room for members of a body that are not looked at.
const BODY_SPARE_BYTES: usize = 32 * 1024;
/// Room for one entry of `key_IDs`, an extension included.
const KEY_ID_ENTRY_BYTES: usize = 160;

/// The `sae` listener's answers. No router: there is one path, and IDs in it that no router could take apart.
#[derive(Clone)]
pub struct SaeApi(Arc<Api>);

struct Api {
    delivery: Arc<Delivery>,
    edge: Edge,
    body_max_bytes: usize,
    body_timeout: Duration,
}

/// The answers over `delivery`, with their bounds, log lines and panic guard. Requests are worked on in `tasks`; let
/// a graceful stop wait for it.
pub fn api(
    delivery: Arc<Delivery>,
    limits: EdgeLimits,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> SaeApi {
    let edge = Edge::new("sae", limits, tasks, meters);
    let body_max_bytes = body_max_bytes(delivery.limits());
    SaeApi(Arc::new(Api { delivery, edge, body_max_bytes, body_timeout: limits.body_timeout() }))
}

impl SaeApi {
    /// The answers to one client, who is told apart by its certificate alone. To anybody but an SAE, they are 401.
    pub fn to(&self, client: ClientIdentity) -> SaeDesk {
        SaeDesk(Arc::new(Served { api: Arc::clone(&self.0), client }))
    }
}

/// The answers to one client.
#[derive(Clone)]
pub struct SaeDesk(Arc<Served>);

struct Served {
    api: Arc<Api>,
    client: ClientIdentity,
}

impl SaeDesk {
    /// Answers one request.
    pub fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<> {
        let served = &self.0;
        let call = Route::parse(request.uri().path()).map(|route| route.call);
        let about = About {
            method: request.method().clone(),
            route: call.map_or("(none)", Call::template),
            caller: Some(&served.client),
            // It uses something up: its body and its wait for the commit have bounds of their own.
            ends_by_itself: call == Some(Call::DecKeys),
        };
        served.api.edge.serve(about, Arc::clone(served).work(request))
    }
}

/// The longest body that can be needed under `limits`.
fn body_max_bytes(limits: &KeyLimits) -> usize {
    let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let key_ids = count(limits.max_per_request).saturating_mul(KEY_ID_ENTRY_BYTES);
    // JSON may write each byte of an ID as six: \u0041.
    let sae_ids = count(limits.max_additional_saes).saturating_mul(6 * MAX_NAME_BYTES);
    BODY_SPARE_BYTES.saturating_add(key_ids.max(sae_ids))
}

/// What is sent back, and how much of the request was not looked at.
struct Answer {
    body: Bytes,
    ignored: usize,
}

impl Served {
    async fn work(self: Arc<Self>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let Some(route) = Route::parse(parts.uri.path()) else {
            return ApiError::no_such_path().into_response();
        };
        if !route.call.allows(&parts.method) {
            let mut response = ApiError::method_not_allowed().into_response();
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.call.allow()));
            return response;
        }
        response(self.answer(route, &parts, body).await)
    }

    async fn answer(&self, route: Route<'_>, parts: &Parts, body: Body) -> Result<Answer, ApiError> {
        let (caller, peer) = (self.caller()?, route.id()?);
        let delivery = &self.api.delivery;
        match route.call {
            Call::Status => {
                let body = status::serve(delivery, &caller, &peer).await?;
                Ok(Answer { body, ignored: extract::other_names(parts.uri.query(), &[]) })
            }
            Call::EncKeys => {
                let asked = match self.body(parts, body).await? {
                    None => enc_keys::from_query(parts.uri.query())?,
                    Some(body) => enc_keys::from_body(&body)?,
                };
                let body = enc_keys::serve(delivery, &caller, &peer, &asked).await?;
                Ok(Answer { body, ignored: asked.ignored })
            }
            Call::DecKeys => {
                let asked = match self.body(parts, body).await? {
                    None => dec_keys::from_query(parts.uri.query())?,
                    Some(body) => dec_keys::from_body(&body)?,
                };
                let body = dec_keys::serve(delivery, &caller, &peer, &asked).await?;
                Ok(Answer { body, ignored: asked.ignored })
            }
        }
    }

    fn caller(&self) -> Result<Caller, ApiError> {
        let sae = self.client.sae().ok_or_else(|| ApiError::unauthorized("not_an_sae"))?;
        self.api.delivery.admit(sae).map_err(refusal::answer)
    }

    /// The body of a POST; `None` for a GET, whose body, if any, is not looked at.
    async fn body(&self, parts: &Parts, body: Body) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        if parts.method != Method::POST {
            return Ok(None);
        }
        extract::accept_json(&parts.headers)?;
        // The task outlives the client's patience, so a body that never ends must be given up here.
        tokio::time::timeout(self.api.body_timeout, json::read_body(body, self.api.body_max_bytes))
            .await
            .map_err(|_| ApiError::body_slow())?
            .map(Some)
    }
}

fn response(answer: Result<Answer, ApiError>) -> Response {
    let Answer { body, ignored } = match answer {
        Ok(answer) => answer,
        Err(error) => return error.into_response(),
    };
    let mut response = Response::new(Body::from(body));
    if ignored > 0 {
        response.extensions_mut().insert(IgnoredParts(ignored));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
