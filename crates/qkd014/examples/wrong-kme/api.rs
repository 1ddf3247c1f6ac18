//! From an HTTP request to a call: paths, methods, the caller.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;

use crate::answer::{Refusal, respond};
use crate::fault::Fault;
use crate::kme::Network;
use crate::request::{KeyRequest, ids_from_body, ids_from_query};

/// The longest request body.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// How much of a longer body is read before the connection is closed.
const DRAINED_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The client of a connection.
#[derive(Clone)]
pub(crate) enum Client {
    /// There was no certificate.
    Nobody,
    /// The certificate names no SAE.
    Stranger,
    /// The SAE that the certificate names, registered or not.
    Sae(String),
}

/// One KME, as its listener sees it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) network: Arc<Network>,
    pub(crate) kme: String,
}

impl Api {
    /// Answers one request of a connection's client.
    pub(crate) async fn answer(&self, client: &Client, request: Request) -> Response {
        let faults = self.network.faults;
        let path = request.uri().path();
        if path.ends_with('/') && route(path).is_some() && faults.has(Fault::SlashRedirects) {
            return redirect(path.trim_end_matches('/'));
        }
        let Some((raw_id, call)) = route(path) else {
            return respond(Err(Refusal::new(StatusCode::NOT_FOUND, "no such path")), faults);
        };
        let (raw_id, call) = (raw_id.to_owned(), call.to_owned());
        let method = request.method().clone();
        let is_get_refused = faults.has(Fault::GetRefused) && call == "enc_keys";
        let is_allowed = match method {
            Method::GET => !is_get_refused,
            Method::POST => call != "status",
            _ => false,
        };
        if !is_allowed {
            return self.wrong_verb(&call);
        }
        let outcome = match self.caller(client, request.headers()) {
            None => Err(Refusal::unauthorized()),
            Some(caller) => self.call(&caller, &raw_id, &call, request).await,
        };
        respond(outcome, faults)
    }

    async fn call(
        &self,
        caller: &str,
        raw_id: &str,
        call: &str,
        request: Request,
    ) -> Result<serde_json::Value, Refusal> {
        let (network, faults) = (&self.network, self.network.faults);
        let (parts, body) = request.into_parts();
        let body = read(body).await?;
        let peer = percent_encoding::percent_decode_str(raw_id)
            .decode_utf8()
            .map_err(|_| Refusal::bad("the ID in the path is not UTF-8"))?;
        let is_get = parts.method == Method::GET;
        let query = parts.uri.query();
        match call {
            "status" => network.status(caller, &peer),
            "enc_keys" => {
                let asked = if is_get {
                    KeyRequest::from_query(query, faults)?
                } else {
                    KeyRequest::from_body(&body, faults)?
                };
                network.enc_keys(caller, &peer, asked)
            }
            _ => {
                let ids = if is_get { ids_from_query(query)? } else { ids_from_body(&body, faults)? };
                network.dec_keys(caller, &peer, &ids).await
            }
        }
    }

    /// The SAE that calls, if this KME serves it.
    fn caller(&self, client: &Client, headers: &HeaderMap) -> Option<String> {
        let (network, faults) = (&self.network, self.network.faults);
        let is_served = |sae: &&String| network.directory.home(sae) == Some(self.kme.as_str());
        let first = || {
            let own = network.directory.sites.iter().find(|site| site.id == self.kme);
            own.map(|site| site.first_sae.clone())
        };
        let mut caller = match client {
            Client::Nobody if faults.has(Fault::NoCertificateNeeded) => first(),
            Client::Sae(sae) if is_served(&sae) => Some(sae.clone()),
            Client::Stranger | Client::Sae(_) if faults.has(Fault::UnregisteredServed) => first(),
            _ => None,
        };
        if faults.has(Fault::HeaderNamesSae) {
            caller = claimed(headers, |sae| network.directory.home(sae).is_some()).or(caller);
        }
        caller
    }

    fn wrong_verb(&self, call: &str) -> Response {
        let faults = self.network.faults;
        if faults.has(Fault::VerbIs500) {
            return respond(Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")), faults);
        }
        let mut response =
            respond(Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here")), faults);
        let allowed = if call == "status" { "GET" } else { "GET, POST" };
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        response
    }
}

/// The raw ID and the call of a path; one trailing slash is accepted.
fn route(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/api/v1/keys/")?;
    let (raw_id, call) = rest.strip_suffix('/').unwrap_or(rest).split_once('/')?;
    ["status", "enc_keys", "dec_keys"].contains(&call).then_some((raw_id, call))
}

/// A registered SAE that a header claims to be the caller.
fn claimed(headers: &HeaderMap, is_known: impl Fn(&str) -> bool) -> Option<String> {
    let of_client = headers.iter().filter(|(name, _)| {
        let name = name.as_str();
        ["sae", "client", "forwarded", "authorization"].iter().any(|part| name.contains(part))
    });
    let words = of_client.filter_map(|(_, value)| value.to_str().ok());
    words
        .flat_map(|value| value.split([' ', '=', '/', ',', ';', '"']))
        .find(|word| is_known(word))
        .map(str::to_owned)
}

fn redirect(target: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    if let Ok(target) = HeaderValue::from_str(target) {
        response.headers_mut().insert(header::LOCATION, target);
    }
    response
}

/// Reads a body to its end, so that a client that sends too much still reads the refusal.
async fn read(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut read, mut len) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad("the request body is incomplete"))?;
        let Some(chunk) = frame.data_ref() else { continue };
        len += chunk.len();
        if len <= BODY_MAX_BYTES {
            read.extend_from_slice(chunk);
        } else if len > DRAINED_MAX_BYTES {
            break;
        }
    }
    if len > BODY_MAX_BYTES {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too long"));
    }
    Ok(read)
}
