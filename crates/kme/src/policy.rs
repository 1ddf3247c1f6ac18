//! What the operator of a site decides about callers and keys.

use std::time::Duration;

/// Longest time that a key may be kept for retrieval.
pub const KEY_TTL_MAX: Duration = Duration::from_hours(24 * 366);

/// Which SAEs a site serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Every SAE certificate of the trust chain, except SAEs that the directory lists at another KME.
    Chain,
    /// Only SAEs that the directory lists at this KME.
    Listed,
}

/// How often a party may retrieve a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetrievalMode {
    /// Once (ETSI GS QKD 014, clause 5.4).
    Once,
    /// Any number of times until the key expires.
    UntilExpiry,
}
