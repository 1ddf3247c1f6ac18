//! Why no keys could be supplied, sorted by who can change that.

use crate::kme::KmeId;

/// No keys were handed out. The same order may succeed later, except for a defect ([`Self::Internal`]).
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// A recipient's KME does not answer; the network or its operator is to blame.
    #[error("KME {0} does not answer")]
    PeerUnavailable(KmeId),
    /// A recipient's KME refused the batch; the two configurations do not fit.
    #[error("KME {kme} refused the keys: {reason}")]
    PeerRefused {
        /// Who refused.
        kme: KmeId,
        /// What it said, for the log.
        reason: String,
    },
    /// Fewer random pool servers answer than a pool set needs.
    #[error("only {answered} random pool servers answer")]
    TooFewPoolServers {
        /// How many did.
        answered: usize,
    },
    /// A key store has no space left.
    #[error("the key store has no space left")]
    StoreFull,
    /// The key store takes no changes now.
    #[error("the key store is not available")]
    StoreUnavailable,
    /// More is asked for than can be made now.
    #[error("too many keys are being made")]
    Busy,
    /// A defect of this program; it was logged where it happened.
    #[error("keys could not be made")]
    Internal,
}
