//! `dec_keys`: ETSI GS QKD 014, clause 6.4.
//!
//! The path names the other holder of the keys: the master for a slave. (The standard's GET example writes
//! `slave_SAE_ID` there; its Tables 2 and 7 say `master_SAE_ID`.)

use axum::body::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use utoipa::ToSchema;

use super::dto::{self, ObjectOnly};
use super::refusal;
use super::{Caller, Delivery};
use crate::http::error::ApiError;
use crate::http::extract::{other_names, query_value};
use crate::http::json::{self, OtherMembers};

/// Table 12. Extensions and unknown members are ignored, whatever their shape.
#[derive(Deserialize, ToSchema)]
#[schema(
    as = KeyIds,
    description = "Table 12. Extensions and other members are ignored.",
)]
pub(super) struct Body {
    /// The keys, each once.
    #[serde(rename = "key_IDs")]
    #[schema(value_type = HashSet<Entry>, min_items = 1)]
    key_ids: Option<Vec<ObjectOnly<Entry>>>,
    /// Ignored.
    #[serde(rename = "key_IDs_extension")]
    #[schema(value_type = Option<Value>)]
    _extension: Option<IgnoredAny>,
    #[serde(flatten)]
    #[schema(ignore)]
    others: OtherMembers,
}

/// A request as read from body or query.
#[derive(Debug)]
pub(super) struct Asked {
    key_ids: Vec<String>,
    /// Ignored members or names.
    pub(super) ignored: usize,
}

impl Asked {
    /// How many keys.
    pub(super) fn number(&self) -> usize {
        self.key_ids.len()
    }
}

/// The ID of a key.
#[derive(Deserialize, ToSchema)]
#[schema(as = KeyId)]
struct Entry {
    /// A UUID of any version in any case, with its four hyphens.
    #[serde(rename = "key_ID")]
    #[schema(
        format = "uuid",
        pattern = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
    )]
    key_id: String,
    /// Ignored.
    #[serde(rename = "key_ID_extension")]
    #[schema(value_type = Option<Value>)]
    _extension: Option<IgnoredAny>,
    #[serde(flatten)]
    #[schema(ignore)]
    others: OtherMembers,
}

/// Reads a POST; the body must be there.
#[utoipa::path(
    post,
    path = "/api/v1/keys/{master_SAE_ID}/dec_keys",
    operation_id = "getKeyWithKeyIDsByPost",
    summary = "Get key with key IDs (clause 5.4)",
    description = "The keys that another SAE shared with the caller, in the order asked for. All or none, and once.",
    params(("master_SAE_ID" = String, Path, description = "The other holder of the keys, or its KME", min_length = 1, max_length = 512)),
    request_body(content = Body, content_type = "application/json"),
    responses((status = 200, body = dto::ContainerBody, description = "The keys")),
)]
pub(super) fn from_body(body: &[u8]) -> Result<Asked, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad_request("no_body", "the request body shall name key_IDs"));
    }
    let ObjectOnly(body) = json::parse::<ObjectOnly<Body>>(body)?;
    let mut asked = Asked { key_ids: Vec::new(), ignored: body.others.0 };
    for ObjectOnly(entry) in body.key_ids.unwrap_or_default() {
        asked.ignored += entry.others.0;
        asked.key_ids.push(entry.key_id);
    }
    Ok(asked)
}

/// Reads a GET: exactly one `key_ID`.
#[utoipa::path(
    get,
    path = "/api/v1/keys/{master_SAE_ID}/dec_keys",
    operation_id = "getKeyWithKeyIDs",
    summary = "Get key with key IDs (clause 5.4)",
    description = "One key that another SAE shared with the caller, once.",
    params(
        ("master_SAE_ID" = String, Path, description = "The other holder of the key, or its KME", min_length = 1, max_length = 512),
        ("key_ID" = String, Query, description = "A UUID of any version in any case", format = "uuid",
         pattern = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"),
    ),
    responses((status = 200, body = dto::ContainerBody, description = "The key")),
)]
pub(super) fn from_query(query: Option<&str>) -> Result<Asked, ApiError> {
    match query_value(query, "key_ID")? {
        Some(id) => Ok(Asked { key_ids: vec![id.into_owned()], ignored: other_names(query, &["key_ID"]) }),
        None => Err(ApiError::bad_request("no_key_ids", "the query shall name one key_ID")),
    }
}

pub(super) async fn serve(
    delivery: &Delivery,
    caller: &Caller,
    peer: &str,
    asked: &Asked,
) -> Result<Bytes, ApiError> {
    let keys = delivery.get_key_with_ids(caller, peer, &asked.key_ids).await.map_err(refusal::answer)?;
    dto::key_container(&keys)
}
