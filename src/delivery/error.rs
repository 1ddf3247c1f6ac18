//! Why a request was not served: one variant for each way in which its caller can react.

use crate::store::StoreError;
use crate::supply::SupplyError;

/// A request that was not served. No key was handed out or used up.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// This site does not serve the SAE (401).
    #[error("the SAE is not admitted at this KME")]
    NotAdmitted,
    /// The caller is not named by a requested key (401; ETSI GS QKD 014, clause 5.4).
    #[error("the SAE is not named by a requested key")]
    NotEntitled,
    /// A requested key cannot be returned, for whatever reason (400; ETSI GS QKD 014, clause 6.4).
    #[error("one or more keys specified are not found on KME")]
    KeysNotFound,
    /// The request breaks a rule (400).
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No keys could be made; the caller may try again (503).
    #[error(transparent)]
    Supply(#[from] SupplyError),
    /// The store failed; the caller may try again (503).
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which rule a request breaks. The caller gets the text; the texts of ETSI GS QKD 014 are literal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This KME does not know the name in the path.
    #[error("the SAE or KME in the path is unknown")]
    UnknownPeer,
    /// The ID in the path is not valid.
    #[error("the ID in the path is not valid: {0}")]
    InvalidPeer(kme::IdError),
    /// The path names the caller.
    #[error("the path shall name the other SAE, not the caller")]
    PeerIsCaller,
    /// Clause 6.2.
    #[error("size shall be a multiple of 8")]
    SizeNotOctets,
    /// `size` is outside what status reports.
    #[error("size shall be an integer from {min} to {max} (bits)")]
    SizeOutOfRange {
        /// `min_key_size`.
        min: u32,
        /// `max_key_size`.
        max: u32,
    },
    /// `number` is outside what status reports.
    #[error("number shall be an integer from 1 to {max}")]
    NumberOutOfRange {
        /// `max_key_per_request`.
        max: u32,
    },
    /// More additional slaves than status allows.
    #[error("additional_slave_SAE_IDs shall have at most {max} entries")]
    TooManyAdditionalSlaves {
        /// `max_SAE_ID_count`.
        max: u32,
    },
    /// An empty list, where the standard is read strictly.
    #[error("additional_slave_SAE_IDs shall name at least one SAE")]
    NoAdditionalSlaves,
    /// An additional slave that this KME does not know.
    #[error("additional_slave_SAE_IDs names an unknown SAE")]
    UnknownAdditionalSlave,
    /// The ID of an additional slave is not valid.
    #[error("additional_slave_SAE_IDs has an entry that is not valid: {0}")]
    InvalidAdditionalSlave(kme::IdError),
    /// An additional slave twice.
    #[error("additional_slave_SAE_IDs names an SAE twice")]
    DuplicateAdditionalSlave,
    /// An additional slave that is the slave of the path.
    #[error("additional_slave_SAE_IDs names the SAE in the path")]
    AdditionalSlaveIsSlave,
    /// An additional slave that is the caller.
    #[error("additional_slave_SAE_IDs names the caller")]
    AdditionalSlaveIsCaller,
    /// Clause 6.2.
    #[error("not all extension_mandatory parameters are supported")]
    UnsupportedExtensions {
        /// Names of the extensions, one group for each object of the request.
        names: Vec<Vec<String>>,
    },
    /// Clause 6.2.
    #[error("not all extension_mandatory request options could be met")]
    ExtensionsNotMet,
    /// No key ID at all.
    #[error("key_IDs shall name at least one key")]
    NoKeyIds,
    /// More key IDs than keys that one request may ask for.
    #[error("key_IDs shall name at most {max} keys")]
    TooManyKeyIds {
        /// `max_key_per_request`.
        max: u32,
    },
    /// A key ID that is not a UUID.
    #[error("a key_ID is not a UUID")]
    KeyIdNotUuid,
    /// A key ID twice.
    #[error("a key_ID is named twice")]
    DuplicateKeyId,
}

impl Refusal {
    /// Name for logs and metrics; it does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownPeer => "unknown_peer",
            Self::InvalidPeer(_) => "invalid_peer",
            Self::PeerIsCaller => "peer_is_caller",
            Self::SizeNotOctets => "size_not_octets",
            Self::SizeOutOfRange { .. } => "size_out_of_range",
            Self::NumberOutOfRange { .. } => "number_out_of_range",
            Self::TooManyAdditionalSlaves { .. } => "too_many_additional_slaves",
            Self::NoAdditionalSlaves => "no_additional_slaves",
            Self::UnknownAdditionalSlave => "unknown_additional_slave",
            Self::InvalidAdditionalSlave(_) => "invalid_additional_slave",
            Self::DuplicateAdditionalSlave => "duplicate_additional_slave",
            Self::AdditionalSlaveIsSlave => "additional_slave_is_slave",
            Self::AdditionalSlaveIsCaller => "additional_slave_is_caller",
            Self::UnsupportedExtensions { .. } => "unsupported_extensions",
            Self::ExtensionsNotMet => "extensions_not_met",
            Self::NoKeyIds => "no_key_ids",
            Self::TooManyKeyIds { .. } => "too_many_key_ids",
            Self::KeyIdNotUuid => "key_id_not_uuid",
            Self::DuplicateKeyId => "duplicate_key_id",
        }
    }
}
