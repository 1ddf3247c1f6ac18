//! What an authority has issued and revoked: `authority/index.json`.

use std::net::IpAddr;

use kme::Timestamp;
use serde::{Deserialize, Serialize};

use super::Role;
use super::permits::Permits;

/// The whole index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) trust_domain: String,
    /// Number of the last CRL. Each CRL has a higher number than the one before.
    pub(super) crl_number: u64,
    /// Serial number of the issuing CA, in hexadecimal.
    pub(super) issuing_serial: String,
    /// What tells this authority from others of the trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// The names that the issuing CA may certify.
    #[serde(default, skip_serializing_if = "Permits::is_empty")]
    pub(super) permits: Permits,
    /// Issuing CAs that were revoked, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) revoked_cas: Vec<RevokedCa>,
    pub(super) certificates: Vec<Entry>,
}

/// An issuing CA that was revoked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RevokedCa {
    /// In hexadecimal.
    pub(super) serial: String,
    pub(super) not_after: Timestamp,
    pub(super) revoked_at: Timestamp,
}

/// One certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// In hexadecimal.
    pub(super) serial: String,
    pub(super) role: Role,
    pub(super) id: String,
    pub(super) not_after: Timestamp,
    /// What a renewal repeats. Unknown for certificates of versions before 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) names: Option<Names>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revoked_at: Option<Timestamp>,
    /// The revoked CA that issued it, by serial number. The CA in force if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revoked_ca: Option<String>,
}

impl Entry {
    /// Whether it was revoked, by itself or with its CA.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked_at.is_some() || self.revoked_ca.is_some()
    }
}

/// What a certificate says beside role and ID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Names {
    pub(super) cn_only: bool,
    pub(super) dns: Vec<String>,
    pub(super) ip: Vec<IpAddr>,
    pub(super) days: u32,
}
