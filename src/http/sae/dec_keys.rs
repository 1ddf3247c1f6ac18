//! `dec_keys`: ETSI GS QKD 014, clause 6.4.
//!
//! The path names the other holder of the keys: the master for a slave. (The standard's GET example writes
//! `slave_SAE_ID` there; its Tables 2 and 7 say `master_SAE_ID`.)

use axum::body::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::dto::{self, ObjectOnly};
use super::refusal;
use super::{Caller, Delivery};
use crate::http::error::ApiError;
use crate::http::extract::{other_names, query_value};
use crate::http::json::{self, OtherMembers};

/// Table 12. Extensions and unknown members are ignored, whatever their shape.
#[derive(Deserialize)]
struct Body {
    #[serde(rename = "key_IDs")]
    key_ids: Option<Vec<ObjectOnly<Entry>>>,
    #[serde(rename = "key_IDs_extension")]
    _extension: Option<IgnoredAny>,
    #[serde(flatten)]
    others: OtherMembers,
}

/// A request as read from body or query.
#[derive(Debug)]
pub(super) struct Asked {
    key_ids: Vec<String>,
    /// Members or names that were not looked at.
    pub(super) ignored: usize,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "key_ID")]
    key_id: String,
    #[serde(rename = "key_ID_extension")]
    _extension: Option<IgnoredAny>,
    #[serde(flatten)]
    others: OtherMembers,
}

/// Reads a POST; the body must be there.
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
