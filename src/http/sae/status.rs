//! `GET /api/v1/keys/{slave_SAE_ID}/status`: ETSI GS QKD 014, clause 6.1.

use axum::body::Bytes;

use super::refusal;
use super::{Caller, Delivery, dto};
use crate::http::error::ApiError;

pub(super) async fn serve(delivery: &Delivery, caller: &Caller, peer: &str) -> Result<Bytes, ApiError> {
    let status = delivery.status(caller, peer).await.map_err(refusal::answer)?;
    dto::status(&status)
}
