//! Keys made ahead of demand. Each pair in use has some ready in the store and some leased in memory.
//!
//! `enc_keys` takes from memory: no commit, no network. A lease moves a block from the store to memory in one
//! commit. After a crash nobody hands it out again. A graceful stop gives it back. So does a daemon that did not
//! hand it out soon, because the master's copies end some time after the lease. When nothing is ready, callers
//! of one pair share the batches that are made for them. Refills visit the pairs in turn, one batch each, and
//! never delay a caller who waits. Replicas share the ready keys in the store: each counts them before it makes
//! a batch, so a pair that several replicas refill at once gets only a few keys too many.

mod blocks;
mod demand;
mod pair;
mod pairs;
mod refill;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::demand::Bounds;
use kme::{Demands, FreshKey, KmeId, Recipient, SaeId, Timestamp};

use self::pair::{Needs, Pair};
use self::pairs::Pairs;
use super::SupplyError;
use crate::store::{LeasedBlock, ReturnedBlock, Store};

/// Blocks that one lease takes at most.
const LEASE_BLOCKS_MAX: u32 = 32;
/// How long the first count of a pair waits at most for its first keys.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// What a new batch is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Into the store, ready to be leased.
    Ready,
    /// Into this daemon's memory, ahead of demand.
    Ahead,
    /// Into this daemon's memory, for callers who wait.
    Waiting,
}

/// Makes the batches that the reserve asks for.
pub(super) trait Maker: Send + Sync {
    /// Makes `number` keys, which every recipient site has stored then. All batches but the last are full blocks.
    /// Those for [`Purpose::Ready`] are in the store then; others are returned.
    ///
    /// # Errors
    /// [`SupplyError`]; then none of them is usable anywhere.
    fn make<'a>(
        self: Arc<Self>,
        master: &'a SaeId,
        recipient: &'a Recipient,
        number: usize,
        purpose: Purpose,
    ) -> BoxFuture<'a, Result<Vec<LeasedBlock>, SupplyError>>;

    /// Whether the recipient's site answers, as far as is known.
    fn is_reachable(&self, recipient: &Recipient) -> bool;

    /// The time.
    fn now(&self) -> Timestamp;
}

/// What the reserves of all pairs hold at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReserveLevels {
    /// Pairs that have a reserve.
    pub pairs: u64,
    /// Keys in this daemon's memory.
    pub leased: u64,
    /// Keys ready in the store, as far as this daemon knows.
    pub stored: u64,
    /// Keys that callers wait for.
    pub waited_for: u64,
}

/// Bounds of the reserve.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReserveSettings {
    /// Keys for each pair.
    pub(super) bounds: Bounds,
    /// Pairs that have a reserve at once; others get keys on demand.
    pub(super) pairs_max: usize,
    /// Keys in memory, of all pairs together.
    pub(super) leased_max: u64,
    /// How long the master's copy stays after a hand-out.
    pub(super) master_ttl: Duration,
}

/// What the reserve is built from.
pub(super) struct ReserveParts {
    pub(super) maker: Arc<dyn Maker>,
    pub(super) store: Arc<Store>,
    pub(super) local: KmeId,
    /// Runs the work that must end before the daemon does.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the daemon stops.
    pub(super) stopping: CancellationToken,
}

/// All pairs that have keys ready. Share it in an `Arc`.
pub(super) struct Reserve {
    parts: ReserveParts,
    settings: ReserveSettings,
    pairs: Pairs,
    /// Keys in memory, of all pairs: the last count, plus what was leased since.
    leased: AtomicU64,
    /// Notified when a pair may need a refill.
    wanted: Notify,
    is_closed: AtomicBool,
}

impl Reserve {
    pub(super) fn new(parts: ReserveParts, settings: ReserveSettings) -> Arc<Self> {
        let (pairs, wanted) = (Pairs::default(), Notify::new());
        let (leased, is_closed) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { parts, settings, pairs, leased, wanted, is_closed })
    }

    /// Hands out `number` keys of the pair that are in memory. `None`: there are too few, or others wait for
    /// them. Then nothing happened, and the caller goes on with [`Self::lease_or_make`].
    pub(super) fn take_ready(
        self: &Arc<Self>,
        master: &SaeId,
        recipient: &Recipient,
        number: usize,
        demands: &Demands,
    ) -> Option<Vec<FreshKey>> {
        let bounds = self.settings.bounds;
        self.pairs.with(master, recipient, |pair| {
            let (keys, needs) = pair.take_ready(number, demands, bounds, self.parts.maker.now())?;
            self.look_ahead(pair, needs);
            Some(keys)
        })?
    }

    /// Hands out `number` keys of the pair as soon as they are leased or made; those who asked earlier come
    /// first. `None`: the reserve does not serve such an order (too many pairs, or keys with demands).
    ///
    /// # Errors
    /// [`SupplyError`]; no key was handed out.
    pub(super) async fn lease_or_make(
        self: &Arc<Self>,
        master: &SaeId,
        recipient: &Recipient,
        number: usize,
        demands: &Demands,
    ) -> Result<Option<Vec<FreshKey>>, SupplyError> {
        let Some(pair) = self.pair(master, recipient) else { return Ok(None) };
        pair.note_demand(number);
        if *demands != Demands::default() {
            return Ok(None);
        }
        let waiting = pair.wait_for(number);
        let _first_in_queue = pair.queue.lock().await;
        let keys = self.serve_first(&pair, number).await?;
        drop(waiting);
        self.look_ahead(&pair, pair.needs(self.settings.bounds, self.parts.maker.now()));
        Ok(Some(keys))
    }

    /// How many keys of the pair could be handed out this moment without making any. For a new pair, waits a
    /// moment for the first keys.
    pub(super) async fn count(self: &Arc<Self>, master: &SaeId, recipient: &Recipient) -> u64 {
        let Some(pair) = self.pair(master, recipient) else { return 0 };
        let is_new = pair.is_unknown();
        let added = pair.added.notified();
        let count = self.count_now(&pair).await;
        self.wanted.notify_one();
        if count > 0 || !is_new || self.settings.bounds.floor == 0 {
            return count;
        }
        if !self.parts.maker.is_reachable(recipient) {
            return 0;
        }
        // Times out if another replica fills the pair: that notifies nobody here.
        let _ = timeout(FIRST_WAIT, added).await;
        self.count_now(&pair).await
    }

    pub(super) fn levels(&self) -> ReserveLevels {
        let now = self.parts.maker.now();
        let pairs = self.pairs.all();
        let mut levels = ReserveLevels { pairs: pairs.len() as u64, ..ReserveLevels::default() };
        for pair in pairs {
            levels.leased += pair.held(now);
            levels.stored += pair.stored();
            levels.waited_for += pair.waited_for() as u64;
        }
        levels
    }

    /// Gives back the leased keys that were not handed out. Nothing is handed out from then on.
    pub(super) async fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for pair in self.pairs.close() {
            let _moving = pair.moving.lock().await;
            self.give_back(&pair, pair.empty()).await;
        }
    }

    /// Gives back what was made for memory while the reserve was being closed.
    async fn give_back_if_closed(&self, pair: &Pair) {
        if self.is_closed.load(Ordering::SeqCst) {
            let _moving = pair.moving.lock().await;
            self.give_back(pair, pair.empty()).await;
        }
    }

    /// Serves the caller that is first in the queue.
    async fn serve_first(
        self: &Arc<Self>,
        pair: &Arc<Pair>,
        number: usize,
    ) -> Result<Vec<FreshKey>, SupplyError> {
        let mut own = None;
        loop {
            if self.is_closed.load(Ordering::SeqCst) {
                return Err(SupplyError::Busy);
            }
            let added = pair.added.notified();
            if let Some(keys) = pair.pop(number, &Demands::default(), self.parts.maker.now()) {
                return Ok(keys);
            }
            if pair.may_lease() && self.lease(pair, self.lease_blocks(pair, number)).await? > 0 {
                continue;
            }
            // A lease ahead of need may have brought the last ones into memory a moment ago.
            if pair.leased(self.parts.maker.now()) >= number as u64 {
                continue;
            }
            let batch = match own.take() {
                Some(batch) => Some(batch),
                None => self.make_for_those_who_wait(pair, number),
            };
            let Some(mut batch) = batch else {
                added.await;
                continue;
            };
            // Keys of another batch may come first.
            tokio::select! {
                biased;
                () = added => own = Some(batch),
                made = &mut batch => made.unwrap_or(Err(SupplyError::Internal))?,
            }
        }
    }

    /// Leases up to `blocks` blocks and returns how many there were. Runs in its own task: if the caller
    /// disconnects, the leased keys must not be lost.
    async fn lease(self: &Arc<Self>, pair: &Arc<Pair>, blocks: u32) -> Result<usize, SupplyError> {
        let (reserve, pair) = (Arc::clone(self), Arc::clone(pair));
        let work = async move {
            let _moving = pair.moving.lock().await;
            if reserve.is_closed.load(Ordering::SeqCst) {
                return Err(SupplyError::Busy);
            }
            reserve.give_back_overdue(&pair).await;
            let ttl = reserve.settings.master_ttl;
            let leased = reserve.parts.store.lease(pair.as_ready(), blocks, ttl).await;
            let leased = leased.map_err(|error| SupplyError::of_store(&error))?;
            let keys = leased.iter().map(|block| block.keys.len() as u64).sum();
            let count = leased.len();
            reserve.leased.fetch_add(keys, Ordering::Relaxed);
            // In this order, so that the keys are always counted somewhere.
            pair.push(leased);
            pair.took(keys, u32::try_from(count).is_ok_and(|count| count < blocks));
            Ok(count)
        };
        self.parts.tasks.spawn(work).await.unwrap_or(Err(SupplyError::Internal))
    }

    /// Begins one delivery for all who wait: at least `number` keys, or as many as it can hold. `None`: enough
    /// keys are coming.
    fn make_for_those_who_wait(
        self: &Arc<Self>,
        pair: &Arc<Pair>,
        number: usize,
    ) -> Option<JoinHandle<Result<(), SupplyError>>> {
        let begun = pair.begin_batch(number, self.settings.bounds.delivery, self.parts.maker.now())?;
        let (reserve, pair) = (Arc::clone(self), Arc::clone(pair));
        let maker = Arc::clone(&self.parts.maker);
        Some(self.parts.tasks.spawn(async move {
            let made = maker.make(&pair.master, &pair.recipient, begun.keys(), Purpose::Waiting).await?;
            pair.push(made);
            reserve.give_back_if_closed(&pair).await;
            Ok(())
        }))
    }

    /// After keys were taken: leases more before memory is empty, refills before the store is empty.
    fn look_ahead(self: &Arc<Self>, pair: &Arc<Pair>, needs: Needs) {
        if needs.lease && !pair.is_leasing.swap(true, Ordering::SeqCst) {
            let (reserve, pair) = (Arc::clone(self), Arc::clone(pair));
            let blocks = self.lease_blocks(&pair, 1);
            self.parts.tasks.spawn(async move {
                if let Err(error) = reserve.lease(&pair, blocks).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "lease ahead of need failed");
                }
                pair.is_leasing.store(false, Ordering::SeqCst);
                reserve.wanted.notify_one();
            });
        }
        if needs.refill {
            self.wanted.notify_one();
        }
    }

    fn lease_blocks(&self, pair: &Pair, number: usize) -> u32 {
        let block = self.settings.bounds.block;
        let least = u32::try_from((number as u64).div_ceil(block)).unwrap_or(LEASE_BLOCKS_MAX);
        let least = least.min(LEASE_BLOCKS_MAX);
        if !self.has_room() {
            return least;
        }
        pair.lease_blocks(block, LEASE_BLOCKS_MAX).max(least)
    }

    /// Whether memory has room for more keys than those that callers wait for.
    fn has_room(&self) -> bool {
        self.leased.load(Ordering::Relaxed) < self.settings.leased_max
    }

    /// Counts the keys in memory, of all pairs.
    fn count_leased(&self, pairs: &[Arc<Pair>]) {
        let now = self.parts.maker.now();
        let leased = pairs.iter().map(|pair| pair.held(now)).sum();
        self.leased.store(leased, Ordering::Relaxed);
    }

    async fn count_now(&self, pair: &Pair) -> u64 {
        let _moving = pair.moving.lock().await;
        let leased = pair.held(self.parts.maker.now());
        loop {
            let refills = pair.refills();
            match self.parts.store.ready_count(pair.as_ready()).await {
                Ok(stored) if pair.set_stored(stored, refills) => return stored + leased,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "ready keys cannot be counted");
                    return leased;
                }
            }
        }
    }

    /// Gives the leased keys of `pair` that waited too long back to the store. The caller holds `pair.moving`,
    /// and does not stop waiting.
    async fn give_back_overdue(&self, pair: &Pair) {
        let keys = self.give_back(pair, pair.take_overdue(self.parts.maker.now())).await;
        pair.gave_back(keys);
    }

    /// Gives leased keys of `pair` back to the store, and returns how many.
    async fn give_back(&self, pair: &Pair, blocks: Vec<LeasedBlock>) -> u64 {
        let now = self.parts.maker.now();
        let returned: Vec<ReturnedBlock<'_>> = blocks
            .iter()
            .filter(|block| now < block.usable_until)
            .map(|block| ReturnedBlock {
                batch_id: block.batch_id,
                source: &self.parts.local,
                pair: pair.as_ready(),
                entitled: &block.entitled,
                created_at: block.created_at,
                usable_until: block.usable_until,
                provenance: &block.provenance,
                keys: &block.keys,
            })
            .collect();
        if returned.is_empty() {
            return 0;
        }
        // Never repeated: after an error they may be ready nevertheless, and leased by another daemon.
        if let Err(error) = self.parts.store.give_back(&returned).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "leased keys could not be given back and will never be handed out");
            return 0;
        }
        returned.iter().map(|block| block.keys.len() as u64).sum()
    }

    /// The pair, added if it is new; `None` when there are too many.
    fn pair(&self, master: &SaeId, recipient: &Recipient) -> Option<Arc<Pair>> {
        self.pairs.find_or_add(master, recipient, self.settings.pairs_max)
    }
}
