//! Makes keys together with the sites that store their twins, and receives the batches that peers push.
//!
//! Owns the one rule of key life: a key is handed out only after every recipient site has durably stored its
//! twin. Knows nothing of HTTP or of what SAEs are allowed. [`Supply::make`] takes ready keys from the
//! reserve and makes the rest.

mod announce;
mod batch;
mod compare;
mod error;
mod intake;
mod meter;
mod order;
mod peers;
mod quota;
mod reserve;
mod retract;
mod turns;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use announce::PeerAnnouncer;
pub use error::SupplyError;
pub use intake::{Intake, IntakeError, IntakeRules, KEYS_PER_PUSH_MAX};
use kme::{Clock, FreshKey, KmeId, Random, Recipient, SaeId};
pub use meter::SupplyMeter;
pub use order::KeyOrder;
pub use peers::Peers;
pub use quota::{PeerQuota, QuotaFull, QuotaTable, Quotas};

use self::order::KeyMaker;
pub use self::reserve::ReserveLevels;
use self::reserve::{Bounds, Reserve, ReserveParts, ReserveSettings};
use crate::pool::SourceSets;
use crate::store::Store;

/// Bounds and rules of making keys.
#[derive(Clone, Copy, Debug)]
pub struct SupplySettings {
    /// How long a key can be retrieved after it was made.
    pub key_ttl: Duration,
    /// Whether the master may retrieve its keys at this site by ID.
    pub master_refetch: bool,
    /// For how long after the hand-out it may do so at least, unless the key expires before.
    pub master_ttl: Duration,
    /// The longest that an order may take. After that it fails and its keys are voided.
    pub order_timeout: Duration,
    /// Most orders in work at once; more are refused.
    pub max_orders: usize,
    /// Length of a key of the default size in bytes.
    pub default_key_bytes: usize,
    /// Keys kept ready for every pair in use.
    pub min_stored_per_pair: u32,
    /// Most keys kept ready for one pair.
    pub max_stored_per_pair: u32,
}

/// What a [`Supply`] is built from.
pub struct SupplyParts {
    /// This site.
    pub local: KmeId,
    /// The other sites.
    pub peers: Arc<Peers>,
    /// The pool sets to draw from.
    pub sets: Arc<SourceSets>,
    /// Where this site keeps its copies.
    pub store: Arc<Store>,
    /// How much it may keep for whom.
    pub quotas: Arc<Quotas>,
    /// Time of creation and expiry.
    pub clock: Arc<dyn Clock>,
    /// Key IDs and seeds.
    pub random: Arc<dyn Random>,
    /// Counts what becomes of keys.
    pub meter: Arc<SupplyMeter>,
    /// Runs the work that must end before the daemon does.
    pub tasks: TaskTracker,
    /// Cancelled when the daemon stops. Then work ends that nobody waits for.
    pub stopping: CancellationToken,
}

/// Most pairs that have a reserve; other pairs get keys on demand.
const PAIRS_MAX: usize = 16_384;
/// When this many keys are in memory, of all pairs together, leases become small.
const LEASED_MAX: u64 = 65_536;

/// Makes keys with other sites, ahead of demand where it can. Share it in an `Arc`.
pub struct Supply {
    parts: Arc<SupplyParts>,
    settings: SupplySettings,
    maker: Arc<KeyMaker>,
    reserve: Arc<Reserve>,
    orders: Semaphore,
}

impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supply").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Supply {
    /// A supply from `parts`. Keys are made ahead of demand while [`Self::keep_filled`] runs.
    pub fn new(parts: SupplyParts, settings: SupplySettings) -> Arc<Self> {
        let orders = Semaphore::new(settings.max_orders.clamp(1, Semaphore::MAX_PERMITS));
        let store = Arc::clone(&parts.store);
        let (local, tasks, stopping) = (parts.local.clone(), parts.tasks.clone(), parts.stopping.clone());
        let parts = Arc::new(parts);
        let maker = Arc::new(KeyMaker::new(Arc::clone(&parts), settings));
        let max = u64::from(settings.max_stored_per_pair);
        let reserve_settings = ReserveSettings {
            bounds: Bounds {
                floor: u64::from(settings.min_stored_per_pair).min(max),
                max,
                block: blast::max_keys_per_batch(settings.default_key_bytes).max(1) as u64,
                delivery: batch::keys_per_delivery(settings.default_key_bytes, parts.sets.largest_bits()),
            },
            pairs_max: PAIRS_MAX,
            leased_max: LEASED_MAX,
            master_ttl: settings.master_ttl,
        };
        let reserve_parts = ReserveParts { maker: Arc::clone(&maker) as _, store, local, tasks, stopping };
        let reserve = Reserve::new(reserve_parts, reserve_settings);
        Arc::new(Self { parts, settings, maker, reserve, orders })
    }

    /// Hands out the keys of `order`: each has a twin, durably stored, at every recipient's site, and no
    /// other call returns it. They come from the reserve if there is one recipient and the size is the
    /// default; otherwise they are made now. Keys in the reserve's memory are returned at the first poll.
    ///
    /// # Errors
    /// [`SupplyError`]; no key was handed out, and whatever sites stored of this order is being voided.
    pub async fn make(&self, order: KeyOrder<'_>) -> Result<Vec<FreshKey>, SupplyError> {
        let of_reserve = self.of_reserve(&order);
        if let Some(recipient) = of_reserve
            && let Some(keys) = self.reserve.take_ready(order.master, recipient, order.number, order.demands)
        {
            self.parts.meter.handed_out_ready(keys.len());
            return Ok(keys);
        }
        let _permit = self.orders.try_acquire().map_err(|_| SupplyError::Busy)?;
        if let Some(recipient) = of_reserve {
            let take = self.reserve.lease_or_make(order.master, recipient, order.number, order.demands);
            let taken = timeout(self.settings.order_timeout, take).await;
            if let Some(keys) = taken.unwrap_or(Err(SupplyError::Slow))? {
                self.parts.meter.handed_out_ready(keys.len());
                return Ok(keys);
            }
        }
        let keys = self.maker.fill(order).await?;
        self.parts.meter.handed_out_made(keys.len());
        Ok(keys)
    }

    /// The recipient, if the reserve serves orders of this kind.
    fn of_reserve<'a>(&self, order: &KeyOrder<'a>) -> Option<&'a Recipient> {
        match order.recipients {
            [recipient] if order.key_bytes == self.settings.default_key_bytes => Some(recipient),
            _ => None,
        }
    }

    /// What the reserves of all pairs hold.
    pub fn levels(&self) -> ReserveLevels {
        self.reserve.levels()
    }

    /// How many keys of the default size are ready for the pair: stored, or leased and not handed out. Asking
    /// counts as use: from now on the pair's reserve is filled.
    pub async fn ready(&self, master: &SaeId, recipient: &Recipient) -> u32 {
        u32::try_from(self.reserve.count(master, recipient).await).unwrap_or(u32::MAX)
    }

    /// Keeps the reserves of all pairs filled; never ends.
    pub async fn keep_filled(self: Arc<Self>) {
        Arc::clone(&self.reserve).keep_filled().await;
    }

    /// Gives leased keys back to the store: for a graceful stop, after the last request.
    pub async fn close(&self) {
        self.reserve.close().await;
    }

    /// Makes a pool set for sharing keys with `peer` if there is none, so that the first request need not
    /// wait.
    ///
    /// # Errors
    /// [`SupplyError`] when none can be made now.
    pub async fn prepare(&self, peer: &KmeId) -> Result<(), SupplyError> {
        let group = BTreeSet::from([peer.clone()]);
        self.parts.sets.acquire(&group, 0).await.map(drop).map_err(order::no_set)
    }
}
