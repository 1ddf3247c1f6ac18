//! Why a call to a peer failed: one variant for each party that can fix it.

use http::StatusCode;

use kme::KmeId;
use mtls::HttpsError;

/// Status of a refusal because as much is stored for the caller as it may have. Nothing was done, and every
/// replica would say the same.
pub const QUOTA_FULL: StatusCode = StatusCode::INSUFFICIENT_STORAGE;
use crate::pool::SetTrouble;

/// Status of a refusal because the pools of a set cannot be had.
pub const SET_UNAVAILABLE: StatusCode = StatusCode::FAILED_DEPENDENCY;

/// A call that a peer did not accept. Texts never hold metadata.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke: network, address, certificates. The peer may have acted nevertheless.
    #[error("KME {kme} cannot be reached")]
    Unreachable {
        /// The peer.
        kme: KmeId,
        /// What the transport said.
        #[source]
        source: HttpsError,
    },
    /// No complete answer in time. The peer may have acted nevertheless.
    #[error("KME {0} did not answer in time")]
    Slow(KmeId),
    /// The circuit breaker is open: the peer failed several times in a row and is not called for a moment.
    #[error("KME {0} is not answering; calls are tried again soon")]
    Paused(KmeId),
    /// The peer cannot serve the call now (503); it may later.
    #[error("KME {kme} is busy: {message}")]
    Busy {
        /// The peer.
        kme: KmeId,
        /// Its message.
        message: String,
    },
    /// The peer has as much stored for this site, or for the master, as it allows (507); it may take more
    /// when some of that was retrieved or has expired.
    #[error("KME {kme} stores no more: {message}")]
    Full {
        /// The peer.
        kme: KmeId,
        /// Its message.
        message: String,
    },
    /// The peer refused the call; asking again changes nothing.
    #[error("KME {kme} refused with status {status}: {message}")]
    Refused {
        /// The peer.
        kme: KmeId,
        /// The status of its answer.
        status: StatusCode,
        /// Its message.
        message: String,
        /// What is wrong with the pool set, if that is why.
        trouble: Option<SetTrouble>,
    },
    /// The peer does not speak the protocol.
    #[error("KME {kme} answered with {what}")]
    Garbled {
        /// The peer.
        kme: KmeId,
        /// What was wrong.
        what: &'static str,
    },
}

impl PeerError {
    /// Whether the peer cannot get at the pools of the batch's set: another set is needed.
    pub fn refuses_set(&self) -> bool {
        matches!(self, Self::Refused { status: SET_UNAVAILABLE, .. })
    }

    /// What is wrong with the pool set, if the peer refused because of that.
    pub fn set_trouble(&self) -> Option<&SetTrouble> {
        match self {
            Self::Refused { trouble, .. } => trouble.as_ref(),
            _ => None,
        }
    }

    /// Whether the pools of the two sites differ: the set must not be used any more, by whichever replica.
    pub fn is_mismatch(&self) -> bool {
        matches!(self.set_trouble(), Some(SetTrouble::ConfirmationMismatch))
    }

    /// Whether the call never left this site.
    pub fn was_not_sent(&self) -> bool {
        matches!(self, Self::Paused(_))
    }

    /// Whether no other replica of the peer should be asked: it would answer the same, because the answer
    /// comes from their shared store, or the set is given up. Other refusals are one replica's: its files or
    /// its clock may differ.
    pub(super) fn is_final(&self) -> bool {
        self.is_mismatch()
            || matches!(
                self,
                Self::Full { .. } | Self::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }
            )
    }

    /// How much the failure tells: of several replicas' failures, the heaviest is reported.
    pub(super) fn weight(&self) -> u8 {
        match self {
            Self::Paused(_) => 0,
            Self::Unreachable { .. } | Self::Slow(_) | Self::Garbled { .. } => 1,
            Self::Busy { .. } => 2,
            Self::Refused { .. } | Self::Full { .. } => 3,
        }
    }

    /// Whether the same call may succeed if repeated at once.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether a peer that answered so to a push stores none of it, now or later.
    pub(super) fn says_nothing_is_stored(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Full { .. })
    }

    /// Whether it counts against the peer in its circuit breaker.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Slow(_) | Self::Garbled { .. })
    }
}
