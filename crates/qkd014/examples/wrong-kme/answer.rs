//! Answers: containers, status and errors, in the standard's form unless a fault changes it.

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::fault::{Fault, Faults};

/// Clause 6.4.
pub(crate) const NOT_FOUND: &str = "one or more keys specified are not found on KME";

/// A key on its way to an SAE.
#[derive(Clone)]
pub(crate) struct Delivered {
    pub(crate) id: String,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

/// A request that is not served.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), details: None }
    }

    /// 400.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized")
    }

    /// A missing key, in the words of the standard.
    pub(crate) fn missing(faults: Faults) -> Self {
        if faults.has(Fault::MissingIs404) {
            return Self::new(StatusCode::NOT_FOUND, NOT_FOUND);
        }
        Self::bad(if faults.has(Fault::MissingSentence) { "Key not found" } else { NOT_FOUND })
    }
}

/// A key container (Table 11).
pub(crate) fn container(keys: &[Delivered], faults: Faults) -> Value {
    let entry = |key: &Delivered| json!({ "key_ID": key.id, "key": text_of(&key.bytes, faults) });
    let mut entries: Vec<Value> = keys.iter().map(entry).collect();
    if faults.has(Fault::KeysAsObject) && entries.len() == 1 {
        return json!({ "keys": entries.pop() });
    }
    json!({ "keys": entries })
}

/// A key as text.
pub(crate) fn text_of(key: &[u8], faults: Faults) -> String {
    if faults.has(Fault::KeyShort) {
        return STANDARD.encode(key.split_last().map_or(key, |(_, rest)| rest));
    }
    if faults.has(Fault::Base64Unpadded) {
        return STANDARD_NO_PAD.encode(key);
    }
    if faults.has(Fault::Base64Url) {
        return URL_SAFE.encode(key);
    }
    STANDARD.encode(key)
}

/// The answer to a request.
pub(crate) fn respond(outcome: Result<Value, Refusal>, faults: Faults) -> Response {
    match outcome {
        Ok(body) => response(StatusCode::OK, "application/json", body.to_string(), faults),
        Err(refusal) => refuse(refusal, faults),
    }
}

fn refuse(refusal: Refusal, faults: Faults) -> Response {
    let Refusal { status, message, details } = refusal;
    if faults.has(Fault::Html422) && status == StatusCode::BAD_REQUEST {
        let page = format!("<html><body><h1>{message}</h1></body></html>");
        return response(StatusCode::UNPROCESSABLE_ENTITY, "text/html", page, faults);
    }
    if faults.has(Fault::TextErrors) {
        return response(status, "text/plain", message, faults);
    }
    if faults.has(Fault::DetailErrors) {
        return response(status, "application/json", json!({ "detail": message }).to_string(), faults);
    }
    let mut body = json!({ "message": message });
    let details = if faults.has(Fault::DetailsObject) {
        Some(json!({ "status": status.as_u16() }))
    } else {
        details.map(|details| json!([details]))
    };
    if let (Some(details), Some(members)) = (details, body.as_object_mut()) {
        members.insert("details".to_owned(), details);
    }
    response(status, "application/json", body.to_string(), faults)
}

fn response(status: StatusCode, kind: &'static str, body: String, faults: Faults) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if !faults.has(Fault::CacheAllowed) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}
