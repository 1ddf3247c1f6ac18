//! Announces new pool sets to the sites that will regenerate keys from them.

use std::sync::Arc;

use futures_util::future::try_join_all;
use kme::KmeId;

use super::{Peers, SupplyError};
use crate::peer::PeerError;
use crate::pool::{AnnounceError, Announcing, PoolSet, SetAnnouncer};

/// Tells every recipient of a new set. The set is used only when all have it.
pub struct PeerAnnouncer {
    peers: Arc<Peers>,
}

/// A recipient did not take the set.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnnounceFailure {
    /// It is not a configured peer.
    #[error("KME {0} is not a configured peer")]
    NoPeer(KmeId),
    /// The call failed.
    #[error(transparent)]
    Call(PeerError),
}

impl AnnounceFailure {
    fn into_error(self) -> AnnounceError {
        let trouble = match &self {
            Self::Call(PeerError::Refused { kme, trouble, .. }) => {
                trouble.clone().map(|trouble| (kme.clone(), trouble))
            }
            _ => None,
        };
        AnnounceError { trouble, cause: Box::new(self) }
    }

    pub(super) fn as_supply_error(&self) -> SupplyError {
        match self {
            Self::NoPeer(kme) => SupplyError::PeerUnavailable(kme.clone()),
            Self::Call(error) => SupplyError::of_peer(error),
        }
    }
}

impl PeerAnnouncer {
    /// Announces to `peers`.
    pub fn new(peers: Arc<Peers>) -> Arc<Self> {
        Arc::new(Self { peers })
    }
}

impl SetAnnouncer for PeerAnnouncer {
    fn announce(&self, set: Arc<PoolSet>) -> Announcing<'_> {
        Box::pin(async move {
            let announcement = set.announcement();
            let calls = set.recipients().iter().map(|kme| {
                let announcement = &announcement;
                async move {
                    let peer = self.peers.find(kme).ok_or_else(|| AnnounceFailure::NoPeer(kme.clone()))?;
                    peer.announce(announcement).await.map_err(AnnounceFailure::Call)
                }
            });
            try_join_all(calls).await.map(drop).map_err(AnnounceFailure::into_error)
        })
    }
}
