//! The `sae` listener: ETSI GS QKD 014 V1.1.1 under `/api/v1/keys/`, for SAE certificates.
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

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, Method, header};
use kme::{KeyLimits, MAX_NAME_BYTES};
use mtls::identity::ClientIdentity;
use mtls::{ConnectionService, ListenerService};
use tokio_util::task::TaskTracker;

pub use self::dto::key_container;
pub use self::openapi::description;
pub use self::path::{Route, SaeCall};
use super::error::ApiError;
use super::extract;
use super::limits::Clients;
use super::meter::RequestMeters;
use super::middleware::{About, Client, Edge, EdgeLimits, IgnoredParts};
use crate::delivery::{Caller, Delivery};

/// Room for ignored members of a body.
const BODY_SPARE_BYTES: usize = 32 * 1024;
/// Room for one entry of `key_IDs` with an extension.
const KEY_ID_ENTRY_BYTES: usize = 160;

/// The API of the `sae` listener. Not a router: IDs in its path may hold any character.
#[derive(Clone)]
pub struct SaeApi(Arc<Api>);

struct Api {
    delivery: Arc<Delivery>,
    edge: Edge,
}

/// The API over `delivery` for `clients`. A graceful stop waits for `tasks`.
pub fn api(
    delivery: Arc<Delivery>,
    clients: Arc<Clients>,
    limits: EdgeLimits,
    tasks: TaskTracker,
    meters: &RequestMeters,
) -> SaeApi {
    let edge = Edge::new(clients, limits, body_max_bytes(delivery.limits()), tasks, meters);
    SaeApi(Arc::new(Api { delivery, edge }))
}

impl ListenerService for SaeApi {
    type Connection = SaeConnection;

    fn open(&self, client: ClientIdentity) -> SaeConnection {
        let client = self.0.edge.client(client);
        SaeConnection(Arc::new(Connection { api: Arc::clone(&self.0), client }))
    }

    fn connections_max(&self, client: &ClientIdentity) -> usize {
        self.0.edge.connections_max(client)
    }

    fn refused(&self, client: &ClientIdentity) {
        self.0.edge.note_refused(client);
    }
}

/// The API for the client of one connection. If that is no SAE, every answer is 401.
#[derive(Clone)]
pub struct SaeConnection(Arc<Connection>);

struct Connection {
    api: Arc<Api>,
    client: Arc<Client>,
}

impl ConnectionService for SaeConnection {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<> {
        let connection = &self.0;
        let call = Route::parse(request.uri().path()).map(|route| route.call);
        let about = About {
            method: request.method().clone(),
            route: call.map_or("(none)", SaeCall::template),
            // It uses up a retrieval. Its body and its wait for the commit have their own limits.
            ends_by_itself: call == Some(SaeCall::DecKeys),
        };
        connection.api.edge.serve(about, &connection.client, Arc::clone(connection).work(request))
    }
}

/// Longest body that a request within `limits` can need.
fn body_max_bytes(limits: &KeyLimits) -> usize {
    let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let key_ids = count(limits.max_per_request).saturating_mul(KEY_ID_ENTRY_BYTES);
    // JSON may write each byte of an ID as six bytes: \u0041.
    let sae_ids = count(limits.max_additional_saes).saturating_mul(6 * MAX_NAME_BYTES);
    BODY_SPARE_BYTES.saturating_add(key_ids.max(sae_ids))
}

/// A body to send, and how many parts of the request were ignored.
struct SaeAnswer {
    body: Bytes,
    ignored: usize,
}

impl Connection {
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

    async fn answer(&self, route: Route<'_>, parts: &Parts, body: Body) -> Result<SaeAnswer, ApiError> {
        let (caller, peer) = (self.caller()?, route.id()?);
        // The body of a GET is ignored.
        let is_post = parts.method == Method::POST;
        if is_post {
            extract::accept_json(&parts.headers)?;
        }
        let (body, _place) = self.api.edge.enter(&self.client, is_post.then_some(body)).await?;
        let delivery = &self.api.delivery;
        match route.call {
            SaeCall::Status => {
                let body = status::serve(delivery, &caller, &peer).await?;
                Ok(SaeAnswer { body, ignored: extract::other_names(parts.uri.query(), &[]) })
            }
            SaeCall::EncKeys => {
                let asked = if is_post {
                    enc_keys::from_body(&body)?
                } else {
                    enc_keys::from_query(parts.uri.query())?
                };
                drop(body);
                self.api.edge.take_keys(&self.client, asked.number())?;
                let body = enc_keys::serve(delivery, &caller, &peer, &asked).await?;
                Ok(SaeAnswer { body, ignored: asked.ignored })
            }
            SaeCall::DecKeys => {
                let asked = if is_post {
                    dec_keys::from_body(&body)?
                } else {
                    dec_keys::from_query(parts.uri.query())?
                };
                drop(body);
                self.api.edge.take_keys(&self.client, asked.number())?;
                let body = dec_keys::serve(delivery, &caller, &peer, &asked).await?;
                Ok(SaeAnswer { body, ignored: asked.ignored })
            }
        }
    }

    fn caller(&self) -> Result<Caller, ApiError> {
        let sae = self.client.identity().sae().ok_or_else(|| ApiError::unauthorized("not_an_sae"))?;
        self.api.delivery.admit(sae).map_err(refusal::answer)
    }
}

fn response(answer: Result<SaeAnswer, ApiError>) -> Response {
    let SaeAnswer { body, ignored } = match answer {
        Ok(answer) => answer,
        Err(error) => return error.into_response(),
    };
    let mut response = Response::new(Body::from(body));
    if ignored > 0 {
        response.extensions_mut().insert(IgnoredParts(ignored));
    }
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
