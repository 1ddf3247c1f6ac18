//! `enc_keys`: ETSI GS QKD 014, clause 6.2.

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::dto::{self, ObjectOnly};
use super::extensions::{Extensions, MandatoryExtension, Report};
use super::refusal;
use super::{Caller, Delivery};
use crate::delivery::KeyRequest;
use crate::http::error::ApiError;
use crate::http::extract::{other_names, query_value};
use crate::http::json::{self, OtherMembers};

/// Table 10. `null` counts as absent; unknown members are ignored, since shipping clients send some.
///
/// The attributes describe what is read by hand from a [`Value`]; `tests/openapi.rs` compares the two.
#[derive(Deserialize, ToSchema)]
#[schema(
    as = KeyRequest,
    description = "Table 10. Members may be left out or `null`; other members are ignored.",
)]
pub(super) struct Body {
    /// How many keys; 1 when absent. Digits only: no text, no `1.0`.
    #[schema(value_type = Option<u32>, minimum = 1)]
    number: Option<Value>,
    /// Bits of each key; `key_size` of status when absent. Digits only: no text, no `256.0`.
    #[schema(value_type = Option<u32>, multiple_of = 8)]
    size: Option<Value>,
    /// More SAEs that may retrieve the keys: known here, and neither the caller nor the SAE in the path.
    #[serde(rename = "additional_slave_SAE_IDs")]
    #[schema(value_type = Option<HashSet<String>>)]
    additional_slaves: Option<Value>,
    /// What the keys shall be. A request with any other extension is refused.
    #[schema(value_type = Option<Vec<MandatoryExtension>>)]
    extension_mandatory: Option<Value>,
    /// What the caller would like: `dqkd_source_grade` and `dqkd_expiry`, with any value, ask for
    /// `key_extension`. Others are ignored.
    #[schema(value_type = Option<Vec<Object>>)]
    extension_optional: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    others: OtherMembers,
}

/// A request as read from body or query.
#[derive(Debug, Default)]
pub(super) struct Asked {
    keys: KeyRequest,
    /// What to tell about each key.
    report: Report,
    /// Ignored members or names.
    pub(super) ignored: usize,
}

impl Asked {
    /// How many keys; 0 for a number that no request may have.
    pub(super) fn number(&self) -> usize {
        usize::try_from(self.keys.number.unwrap_or(1)).unwrap_or(0)
    }
}

/// Reads a POST. A body of no bytes is an empty request.
#[utoipa::path(
    post,
    path = "/api/v1/keys/{slave_SAE_ID}/enc_keys",
    operation_id = "getKeyByPost",
    summary = "Get key (clause 5.3)",
    description = "Fresh keys that the caller shares with whom the path names, and with every additional slave. \
                   All or none. A body of no bytes is an empty request.",
    params(("slave_SAE_ID" = String, Path, description = "An SAE, or a KME for any SAE of that site", min_length = 1, max_length = 512)),
    request_body(content = Body, content_type = "application/json"),
    responses((status = 200, body = dto::ContainerBody, description = "The keys")),
)]
pub(super) fn from_body(body: &[u8]) -> Result<Asked, ApiError> {
    if body.is_empty() {
        return Ok(Asked::default());
    }
    let ObjectOnly(body) = json::parse::<ObjectOnly<Body>>(body)?;
    let extensions = Extensions::parse(body.extension_mandatory, body.extension_optional)?;
    let keys = KeyRequest {
        number: body.number.map(|value| json_integer("number", &value)).transpose()?,
        size_bits: body.size.map(|value| json_integer("size", &value)).transpose()?,
        additional_slaves: body.additional_slaves.map(sae_ids).transpose()?,
        unsupported_extensions: extensions.unsupported,
        demands: extensions.demands,
    };
    Ok(Asked { keys, report: extensions.report, ignored: body.others.0 })
}

/// Reads a GET: `number` and `size`, nothing else.
#[utoipa::path(
    get,
    path = "/api/v1/keys/{slave_SAE_ID}/enc_keys",
    operation_id = "getKey",
    summary = "Get key (clause 5.3)",
    description = "Fresh keys that the caller shares with whom the path names. All or none.",
    params(
        ("slave_SAE_ID" = String, Path, description = "An SAE, or a KME for any SAE of that site", min_length = 1, max_length = 512),
        ("number" = inline(Option<u32>), Query, description = "How many keys; 1 when absent", minimum = 1),
        ("size" = inline(Option<u32>), Query, description = "Bits of each key", multiple_of = 8),
    ),
    responses((status = 200, body = dto::ContainerBody, description = "The keys")),
)]
pub(super) fn from_query(query: Option<&str>) -> Result<Asked, ApiError> {
    let integer = |name| query_value(query, name)?.map(|text| text_integer(name, &text)).transpose();
    let (number, size_bits) = (integer("number")?, integer("size")?);
    let keys = KeyRequest { number, size_bits, ..KeyRequest::default() };
    Ok(Asked { keys, ignored: other_names(query, &["number", "size"]), ..Asked::default() })
}

pub(super) async fn serve(
    delivery: &Delivery,
    caller: &Caller,
    peer: &str,
    asked: &Asked,
) -> Result<Bytes, ApiError> {
    let keys = delivery.get_key(caller, peer, &asked.keys).await.map_err(refusal::answer)?;
    dto::fresh_key_container(&keys, asked.report)
}

fn not_an_integer(name: &'static str) -> ApiError {
    ApiError::bad_request("not_an_integer", format!("{name} shall be an integer"))
}

fn json_integer(name: &'static str, value: &Value) -> Result<i128, ApiError> {
    let Value::Number(number) = value else { return Err(not_an_integer(name)) };
    number.as_i128().ok_or_else(|| not_an_integer(name))
}

/// Decimal digits after an optional minus. Rust's parser would also accept a plus.
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
