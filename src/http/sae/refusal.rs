//! The status, sentence, code and cause of each failure of delivery. The cause is for the request's log line.

use kme::causes;
use serde_json::{Map, Value, json};

use crate::delivery::{DeliveryError, Refusal};
use crate::http::error::ApiError;
use crate::store::StoreError;
use crate::supply::SupplyError;

/// `Retry-After` when this daemon is busy.
const BUSY_RETRY_SECS: u32 = 1;
/// `Retry-After` when another machine does not answer.
const OUTAGE_RETRY_SECS: u32 = 5;
/// `Retry-After` when an operator has to act.
const OPERATOR_RETRY_SECS: u32 = 30;

/// The answer to a request that was not served.
pub(super) fn answer(failure: DeliveryError) -> ApiError {
    match failure {
        DeliveryError::NotAdmitted => ApiError::unauthorized("not_admitted"),
        DeliveryError::NotEntitled => ApiError::unauthorized("not_entitled"),
        DeliveryError::KeysNotFound => ApiError::bad_request("keys_not_found", failure.to_string()),
        DeliveryError::Refused(refusal) => refused(refusal),
        DeliveryError::Supply(failure) => supply(&failure),
        DeliveryError::Store(failure) => store(&failure),
    }
}

fn refused(refusal: Refusal) -> ApiError {
    let mut answer = ApiError::bad_request(refusal.code(), refusal.to_string());
    if let Refusal::UnsupportedExtensions { names } = refusal {
        // Names only: values may be of any size.
        let groups: Vec<Value> = names
            .into_iter()
            .map(|group| {
                Value::Object(group.into_iter().map(|name| (name, Value::Null)).collect::<Map<_, _>>())
            })
            .collect();
        answer.details.push(json!({ "extension_mandatory_unsupported": groups }));
    }
    answer
}

fn supply(failure: &SupplyError) -> ApiError {
    let (code, message, retry_secs) = match failure {
        SupplyError::PeerUnavailable(kme) => {
            ("peer_unavailable", format!("KME {kme} does not answer"), OUTAGE_RETRY_SECS)
        }
        SupplyError::PeerBusy { .. } => ("peer_busy", failure.to_string(), OUTAGE_RETRY_SECS),
        // The peer's reason is for operators: it only goes to the log.
        SupplyError::PeerRefused { kme, .. } => {
            ("peer_refused", format!("KME {kme} refused the keys"), OPERATOR_RETRY_SECS)
        }
        SupplyError::TooFewPoolServers { .. } => {
            ("too_few_pool_servers", failure.to_string(), OUTAGE_RETRY_SECS)
        }
        SupplyError::Quota(_) => ("quota_sae", failure.to_string(), OPERATOR_RETRY_SECS),
        SupplyError::PeerFull { kme, .. } => {
            ("quota_peer", format!("KME {kme} stores no more keys now"), OPERATOR_RETRY_SECS)
        }
        SupplyError::PeerDemandsPools { .. } => {
            ("peer_demands_pools", failure.to_string(), OPERATOR_RETRY_SECS)
        }
        SupplyError::PoolsDiffer(_) => ("pools_differ", failure.to_string(), OUTAGE_RETRY_SECS),
        SupplyError::StoreFull => ("store_full", failure.to_string(), OPERATOR_RETRY_SECS),
        SupplyError::StoreUnavailable => ("store_unavailable", failure.to_string(), OUTAGE_RETRY_SECS),
        SupplyError::Slow => ("supply_slow", failure.to_string(), OUTAGE_RETRY_SECS),
        SupplyError::Busy => ("supply_busy", failure.to_string(), BUSY_RETRY_SECS),
        // Delivery turns this into a refusal, so only a defect can bring it here.
        SupplyError::DemandsNotMet | SupplyError::Internal => {
            ("supply_failed", failure.to_string(), OUTAGE_RETRY_SECS)
        }
    };
    ApiError::unavailable(code, message, retry_secs).caused_by(causes(failure))
}

fn store(failure: &StoreError) -> ApiError {
    let (code, retry_secs) = match failure {
        StoreError::Busy(_) => ("store_busy", BUSY_RETRY_SECS),
        StoreError::Uncertain(_) => ("store_uncertain", OUTAGE_RETRY_SECS),
        StoreError::Full(_) => ("store_full", OPERATOR_RETRY_SECS),
        StoreError::ReadOnly(_) | StoreError::Closed => ("store_unavailable", OPERATOR_RETRY_SECS),
        _ => ("store_failed", OPERATOR_RETRY_SECS),
    };
    ApiError::unavailable(code, failure.public_message(), retry_secs).caused_by(causes(failure))
}
