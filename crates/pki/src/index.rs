//! What an authority has issued and revoked: `authority/index.json`.

use kme::Timestamp;
use serde::{Deserialize, Serialize};

use super::Role;

/// The whole index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) trust_domain: String,
    /// Number of the last CRL. Each CRL has a higher number than the one before.
    pub(super) crl_number: u64,
    /// Serial number of the issuing CA, in hexadecimal.
    pub(super) issuing_serial: String,
    pub(super) certificates: Vec<Entry>,
}

/// One certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// In hexadecimal.
    pub(super) serial: String,
    pub(super) role: Role,
    pub(super) id: String,
    pub(super) not_after: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revoked_at: Option<Timestamp>,
}
