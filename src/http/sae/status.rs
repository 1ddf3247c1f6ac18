//! `GET /api/v1/keys/{slave_SAE_ID}/status`: ETSI GS QKD 014, clause 6.1.

use axum::body::Bytes;

use super::refusal;
use super::{Caller, Delivery, dto};
use crate::http::error::ApiError;

#[utoipa::path(
    get,
    path = "/api/v1/keys/{slave_SAE_ID}/status",
    operation_id = "getStatus",
    summary = "Get status (clause 5.2)",
    description = "What the caller may ask for, and how many keys are ready to be handed out.",
    params(("slave_SAE_ID" = String, Path, description = "An SAE, or a KME for any SAE of that site", min_length = 1, max_length = 512)),
    responses((status = 200, body = dto::StatusBody<'static>, description = "Limits and numbers")),
)]
pub(super) async fn serve(delivery: &Delivery, caller: &Caller, peer: &str) -> Result<Bytes, ApiError> {
    let status = delivery.status(caller, peer).await.map_err(refusal::answer)?;
    dto::status(&status)
}
