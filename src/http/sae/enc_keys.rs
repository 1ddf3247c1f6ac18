//! `enc_keys`: ETSI GS QKD 014, clause 6.2.

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::dto::{self, ObjectOnly};
use super::refusal;
use super::{Caller, Delivery};
use crate::delivery::KeyRequest;
use crate::http::error::ApiError;
use crate::http::extract::query_value;
use crate::http::json;

/// Table 10. `null` counts as absent; unknown members are ignored, since shipping clients send some.
#[derive(Deserialize)]
struct Body {
    number: Option<Value>,
    size: Option<Value>,
    #[serde(rename = "additional_slave_SAE_IDs")]
    additional_slaves: Option<Value>,
    extension_mandatory: Option<Value>,
    extension_optional: Option<Value>,
}

/// Reads a POST. A body of no bytes is an empty request.
pub(super) fn from_body(body: &[u8]) -> Result<KeyRequest, ApiError> {
    if body.is_empty() {
        return Ok(KeyRequest::default());
    }
    let ObjectOnly(body) = json::parse::<ObjectOnly<Body>>(body)?;
    // Only the shape of optional extensions counts: none is supported, and all may be ignored.
    extension_names("extension_optional", body.extension_optional)?;
    Ok(KeyRequest {
        number: body.number.map(|value| json_integer("number", &value)).transpose()?,
        size_bits: body.size.map(|value| json_integer("size", &value)).transpose()?,
        additional_slaves: body.additional_slaves.map(sae_ids).transpose()?.unwrap_or_default(),
        mandatory_extensions: extension_names("extension_mandatory", body.extension_mandatory)?,
    })
}

/// Reads a GET: `number` and `size`, nothing else.
pub(super) fn from_query(query: Option<&str>) -> Result<KeyRequest, ApiError> {
    let integer = |name| query_value(query, name)?.map(|text| text_integer(name, &text)).transpose();
    Ok(KeyRequest { number: integer("number")?, size_bits: integer("size")?, ..KeyRequest::default() })
}

pub(super) async fn serve(
    delivery: &Delivery,
    caller: &Caller,
    peer: &str,
    request: &KeyRequest,
) -> Result<Bytes, ApiError> {
    let keys = delivery.get_key(caller, peer, request).await.map_err(refusal::answer)?;
    dto::key_container(&keys)
}

fn not_an_integer(name: &'static str) -> ApiError {
    ApiError::bad_request("not_an_integer", format!("{name} shall be an integer"))
}

fn json_integer(name: &'static str, value: &Value) -> Result<i128, ApiError> {
    let Value::Number(number) = value else { return Err(not_an_integer(name)) };
    number.as_i128().ok_or_else(|| not_an_integer(name))
}

/// Decimal digits after an optional minus, and nothing else that Rust would take.
fn text_integer(name: &'static str, text: &str) -> Result<i128, ApiError> {
    if text.starts_with('+') {
        return Err(not_an_integer(name));
    }
    text.parse().map_err(|_| not_an_integer(name))
}

fn sae_ids(value: Value) -> Result<Vec<String>, ApiError> {
    let wrong_shape = || {
        ApiError::bad_request(
            "bad_additional_slaves",
            "additional_slave_SAE_IDs shall be an array of strings",
        )
    };
    let Value::Array(entries) = value else { return Err(wrong_shape()) };
    entries
        .into_iter()
        .map(|entry| match entry {
            Value::String(id) => Ok(id),
            _ => Err(wrong_shape()),
        })
        .collect()
}

/// The names in an array of extension objects, empty objects left out.
fn extension_names(name: &'static str, value: Option<Value>) -> Result<Vec<Vec<String>>, ApiError> {
    let wrong_shape =
        || ApiError::bad_request("bad_extensions", format!("{name} shall be an array of objects"));
    let entries = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(wrong_shape()),
    };
    let mut groups = Vec::new();
    for entry in entries {
        let Value::Object(extensions) = entry else { return Err(wrong_shape()) };
        if !extensions.is_empty() {
            groups.push(extensions.into_iter().map(|(name, _)| name).collect());
        }
    }
    Ok(groups)
}
