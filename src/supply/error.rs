//! Why no keys could be supplied: one variant for each party that can fix it.

use kme::{KmeId, PoolServerId};

use super::QuotaFull;
use crate::peer::PeerError;
use crate::pool::SetTrouble;
use crate::store::StoreError;

/// No keys were handed out. The same order may succeed later, except for a defect ([`Self::Internal`]).
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// A recipient's KME does not answer; the network or its operator is to blame.
    #[error("KME {0} does not answer")]
    PeerUnavailable(KmeId),
    /// A recipient's KME cannot take keys now, for a reason of its own.
    #[error("KME {kme} cannot take keys now: {reason}")]
    PeerBusy {
        /// Who it is.
        kme: KmeId,
        /// What it said.
        reason: String,
    },
    /// A recipient's KME refused the batch; the two configurations do not fit.
    #[error("KME {kme} refused the keys: {reason}")]
    PeerRefused {
        /// Who refused.
        kme: KmeId,
        /// What it said, for the log.
        reason: String,
    },
    /// Fewer random pool servers give pools than a pool set needs.
    #[error(
        "too few random pool servers answer: {answered} of the {needed} that keys need here{}",
        listed(.missing)
    )]
    TooFewPoolServers {
        /// How many did.
        answered: usize,
        /// How many must.
        needed: usize,
        /// The others.
        missing: Vec<PoolServerId>,
    },
    /// The master has as much stored here as it may have.
    #[error(transparent)]
    Quota(#[from] QuotaFull),
    /// A recipient's KME stores no more: this site or the master has its share there.
    #[error("KME {kme} stores no more keys now: {reason}")]
    PeerFull {
        /// Who it is.
        kme: KmeId,
        /// What it said, for the log.
        reason: String,
    },
    /// A recipient's KME demands keys from more pools than a set of this site had.
    #[error("KME {kme} accepts only keys from {pools_min} or more random pools")]
    PeerDemandsPools {
        /// Who it is.
        kme: KmeId,
        /// How many it demands.
        pools_min: usize,
    },
    /// A pool server gave this site and a recipient's different pools. Their set was discarded.
    #[error("a random pool server gave this site and KME {0} different pools")]
    PoolsDiffer(KmeId),
    /// A key store has no space left.
    #[error("the key store has no space left")]
    StoreFull,
    /// The key store takes no changes now.
    #[error("the key store is not available")]
    StoreUnavailable,
    /// Keys as the caller demands them cannot be made here now.
    #[error("no keys can be made that meet the caller's demands")]
    DemandsNotMet,
    /// Too many orders at once.
    #[error("too many keys are being made")]
    Busy,
    /// It took too long; a peer or a pool server is slow.
    #[error("making the keys took too long")]
    Slow,
    /// A defect of this program; it was logged where it happened.
    #[error("keys could not be made")]
    Internal,
}

impl SupplyError {
    /// The caller's error when keys could not be stored or leased.
    pub(super) fn of_store(error: &StoreError) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, "keys could not be stored or leased");
        match error {
            StoreError::Full(_) => Self::StoreFull,
            _ => Self::StoreUnavailable,
        }
    }

    /// The caller's error when a call to a peer failed.
    pub(super) fn of_peer(error: &PeerError) -> Self {
        match error {
            PeerError::Unreachable { kme, .. } | PeerError::Slow(kme) | PeerError::Paused(kme) => {
                Self::PeerUnavailable(kme.clone())
            }
            PeerError::Full { kme, message } => Self::PeerFull { kme: kme.clone(), reason: message.clone() },
            PeerError::Busy { kme, message } => Self::PeerBusy { kme: kme.clone(), reason: message.clone() },
            PeerError::Refused { kme, message, trouble, .. } => match trouble {
                Some(SetTrouble::ConfirmationMismatch) => Self::PoolsDiffer(kme.clone()),
                Some(SetTrouble::TooFewPools { pools_min }) => {
                    Self::PeerDemandsPools { kme: kme.clone(), pools_min: *pools_min }
                }
                _ => Self::PeerRefused { kme: kme.clone(), reason: message.clone() },
            },
            PeerError::Garbled { kme, what } => {
                Self::PeerRefused { kme: kme.clone(), reason: (*what).to_owned() }
            }
        }
    }
}

/// `; missing: pool-2, pool-3`, if any are.
fn listed(missing: &[PoolServerId]) -> String {
    let names: Vec<&str> = missing.iter().map(PoolServerId::as_str).collect();
    if names.is_empty() { String::new() } else { format!("; missing: {}", names.join(", ")) }
}
