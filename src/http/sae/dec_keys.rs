//! `dec_keys`: ETSI GS QKD 014, clause 6.4.
//!
//! The path names the other holder of the keys: the master for a slave. (The standard's GET example writes
//! `slave_SAE_ID` there; its Tables 2 and 7 say `master_SAE_ID`.)

use axum::body::Bytes;
use serde::Deserialize;

use super::dto::{self, ObjectOnly};
use super::refusal;
use super::{Caller, Delivery};
use crate::http::error::ApiError;
use crate::http::extract::query_value;
use crate::http::json;

/// Table 12. Extensions and unknown members are ignored, whatever their shape.
#[derive(Deserialize)]
struct Body {
    #[serde(rename = "key_IDs")]
    key_ids: Option<Vec<ObjectOnly<Entry>>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "key_ID")]
    key_id: String,
}

/// Reads a POST; the body must be there.
pub(super) fn from_body(body: &[u8]) -> Result<Vec<String>, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad_request("no_body", "the request body shall name key_IDs"));
    }
    let ObjectOnly(body) = json::parse::<ObjectOnly<Body>>(body)?;
    Ok(body.key_ids.unwrap_or_default().into_iter().map(|ObjectOnly(entry)| entry.key_id).collect())
}

/// Reads a GET: exactly one `key_ID`.
pub(super) fn from_query(query: Option<&str>) -> Result<Vec<String>, ApiError> {
    match query_value(query, "key_ID")? {
        Some(id) => Ok(vec![id.into_owned()]),
        None => Err(ApiError::bad_request("no_key_ids", "the query shall name one key_ID")),
    }
}

pub(super) async fn serve(
    delivery: &Delivery,
    caller: &Caller,
    peer: &str,
    key_ids: &[String],
) -> Result<Bytes, ApiError> {
    let keys = delivery.get_key_with_ids(caller, peer, key_ids).await.map_err(refusal::answer)?;
    dto::key_container(&keys)
}
