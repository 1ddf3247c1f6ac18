//! Where keys come from: batches made with the peers that store the twins, and batches that peers push here.
//!
//! Owns the one rule of key life: a key is handed out only after every recipient site has durably stored its
//! twin. Knows nothing of HTTP or of what SAEs are allowed. Keys ahead of demand (reserve, leases) belong
//! here, between [`Supply::make`] and the batches.

mod announce;
mod batch;
mod error;
mod intake;
mod order;
mod peers;
mod recent;
mod retract;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use announce::PeerAnnouncer;
pub use error::SupplyError;
pub use intake::{Intake, IntakeError, IntakeRules};
pub use order::KeyOrder;
pub use peers::Peers;

use crate::kme::{Clock, FreshKey, KmeId, Random, Recipient};
use crate::pool::SourceSets;
use crate::store::Store;

/// Bounds and rules of making keys.
#[derive(Clone, Copy, Debug)]
pub struct SupplySettings {
    /// How long a key can be retrieved after it was made.
    pub key_ttl: Duration,
    /// Whether the master may retrieve its keys at this site by ID.
    pub master_refetch: bool,
    /// The longest that an order may take; then it is given up and its keys are voided.
    pub order_timeout: Duration,
    /// Most orders in work at once; more are refused.
    pub max_orders: usize,
    /// Length of a key of the default size in bytes.
    pub default_key_bytes: usize,
}

/// What making keys is made of.
pub struct SupplyParts {
    /// This site.
    pub local: KmeId,
    /// The other sites.
    pub peers: Arc<Peers>,
    /// The pool sets to draw from.
    pub sets: Arc<SourceSets>,
    /// Where this site keeps its copies.
    pub store: Arc<Store>,
    /// Time of creation and expiry.
    pub clock: Arc<dyn Clock>,
    /// Key IDs and seeds.
    pub random: Arc<dyn Random>,
    /// Holds the work that must end before the daemon does.
    pub tasks: TaskTracker,
}

/// Makes keys with other sites. Share it in an `Arc`.
pub struct Supply {
    parts: Arc<SupplyParts>,
    settings: SupplySettings,
    orders: Semaphore,
    retracts: Arc<Semaphore>,
}

impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supply").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Supply {
    /// A supply from `parts`. Nothing is made before the first order.
    pub fn new(parts: SupplyParts, settings: SupplySettings) -> Arc<Self> {
        let orders = Semaphore::new(settings.max_orders.clamp(1, Semaphore::MAX_PERMITS));
        let retracts = Arc::new(Semaphore::new(retract::RETRACTS_MAX));
        Arc::new(Self { parts: Arc::new(parts), settings, orders, retracts })
    }

    /// Makes the keys of `order` and hands them out: each has a twin, durably stored, at every recipient's
    /// site, and no other call returns it.
    ///
    /// # Errors
    /// [`SupplyError`]; then no key was handed out, and what sites stored of this order is being voided.
    pub async fn make(&self, order: KeyOrder<'_>) -> Result<Vec<FreshKey>, SupplyError> {
        let _permit = self.orders.try_acquire().map_err(|_| SupplyError::Busy)?;
        order::fill(self, order).await
    }

    /// How many keys of the default size could be made this moment for `recipients`, without a new pool set.
    pub fn deliverable_now(&self, recipients: &[Recipient]) -> u32 {
        let group = self.group_of(recipients);
        if !group.iter().all(|kme| self.parts.peers.is_answering(kme)) {
            return 0;
        }
        let bits = self.parts.sets.deliverable_bits(&group);
        batch::keys_from_bits(bits, self.settings.default_key_bytes)
    }

    /// Makes sure that there is a pool set for sharing keys with `peer`, so that the first request need not
    /// wait for one.
    ///
    /// # Errors
    /// [`SupplyError`] when none can be made now.
    pub async fn prepare(&self, peer: &KmeId) -> Result<(), SupplyError> {
        let group = BTreeSet::from([peer.clone()]);
        self.parts.sets.acquire(&group, 0).await.map(drop).map_err(order::no_set)
    }

    /// The remote sites among the recipients'.
    fn group_of(&self, recipients: &[Recipient]) -> BTreeSet<KmeId> {
        let sites = recipients.iter().map(|recipient| &recipient.kme);
        sites.filter(|kme| **kme != self.parts.local).cloned().collect()
    }
}
