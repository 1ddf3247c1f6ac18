//! What making a batch takes: the other sites, pool sets, the store, the engine's inputs.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kme::{Demands, KmeId, Recipient, SaeId, Timestamp};
use tokio::sync::Semaphore;

use super::reserve::{Maker, Purpose};
use super::{KeyOrder, SupplyError, SupplyParts, SupplySettings, order, retract};
use crate::store::LeasedBlock;

/// Makes batches for orders and for the reserve.
pub(super) struct Workshop {
    pub(super) parts: SupplyParts,
    pub(super) settings: SupplySettings,
    pub(super) retracts: Arc<Semaphore>,
}

impl Workshop {
    pub(super) fn new(parts: SupplyParts, settings: SupplySettings) -> Arc<Self> {
        let retracts = Arc::new(Semaphore::new(retract::RETRACTS_MAX));
        Arc::new(Self { parts, settings, retracts })
    }

    /// The remote sites among the recipients'.
    pub(super) fn group_of(&self, recipients: &[Recipient]) -> BTreeSet<KmeId> {
        let sites = recipients.iter().map(|recipient| &recipient.kme);
        sites.filter(|kme| **kme != self.parts.local).cloned().collect()
    }
}

impl Maker for Workshop {
    fn make<'a>(
        self: Arc<Self>,
        master: &'a SaeId,
        recipient: &'a Recipient,
        number: usize,
        purpose: Purpose,
    ) -> BoxFuture<'a, Result<Option<LeasedBlock>, SupplyError>> {
        Box::pin(async move {
            let order = KeyOrder {
                master,
                recipients: std::slice::from_ref(recipient),
                number,
                key_bytes: self.settings.default_key_bytes,
                demands: &Demands::default(),
            };
            order::make_block(&self, order, purpose).await
        })
    }

    fn is_reachable(&self, recipient: &Recipient) -> bool {
        recipient.kme == self.parts.local || self.parts.peers.is_answering(&recipient.kme)
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }
}
