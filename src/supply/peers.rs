//! The configured peers, by their ID.

use std::collections::BTreeMap;
use std::sync::Arc;

use kme::KmeId;

use crate::peer::{BreakerState, PeerClient};

/// One client for each configured peer.
pub struct Peers(BTreeMap<KmeId, Arc<PeerClient>>);

impl Peers {
    /// The peers behind `clients`.
    pub fn new(clients: impl IntoIterator<Item = PeerClient>) -> Arc<Self> {
        let named = |client: PeerClient| (client.kme().clone(), Arc::new(client));
        Arc::new(Self(clients.into_iter().map(named).collect()))
    }

    /// The client of `kme`, if it is a peer.
    pub fn find(&self, kme: &KmeId) -> Option<&Arc<PeerClient>> {
        self.0.get(kme)
    }

    /// All of them, by their ID.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PeerClient>> {
        self.0.values()
    }

    /// Whether calls to `kme` go through.
    pub fn is_answering(&self, kme: &KmeId) -> bool {
        self.find(kme).is_some_and(|peer| peer.breaker() == BreakerState::Closed)
    }
}
