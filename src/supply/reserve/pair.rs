//! One pair in this daemon's memory: its leased keys, its demand, its keys in the store, the callers who
//! wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kme::{Backoff, Demands, FreshKey, Recipient, SaeId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Purpose;
use super::blocks::Blocks;
use super::demand::{Bounds, Demand};
use crate::store::{LeasedBlock, ReadyPair};

/// A reserve is filled up when a whole block is missing (in a large one, a whole delivery). A small one is also
/// filled up when it has less than its target divided by this.
const LOW_WATER_PART: u64 = 2;
/// A reserve is large if its target is at least so many deliveries.
const LARGE: u64 = 4;
/// How long a count of the store is valid where other replicas may change it.
const FRESH: Duration = Duration::from_secs(1);
/// How often the keys in the store are counted in any case: this daemon does not notice when they pass half
/// of their life.
const RECOUNT: Duration = Duration::from_secs(10);

/// Pause after failed refills. Short, so that a reserve fills soon after the fault is gone.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

/// One pair.
pub(super) struct Pair {
    pub(super) master: SaeId,
    pub(super) recipient: Recipient,
    stock: Mutex<Stock>,
    /// Held by the caller that is served next; the others wait for it in the order they came.
    pub(super) queue: tokio::sync::Mutex<()>,
    /// Keys that they wait for.
    waiting: AtomicUsize,
    /// Held while keys move between store and memory, and while both are counted.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// Whether a lease ahead of need is under way.
    pub(super) is_leasing: AtomicBool,
    /// Notified whenever keys were added.
    pub(super) added: Notify,
}

struct Stock {
    blocks: Blocks,
    demand: Demand,
    /// Keys that the store has ready, as far as this daemon knows; `None`: never looked. Other replicas take
    /// from them and add to them.
    stored: Option<u64>,
    /// When this daemon last learnt that number.
    learnt_at: Instant,
    /// Whether keys were asked for or made since then.
    is_used_since: bool,
    /// Keys being made for the store.
    in_work: u64,
    /// Keys being made for memory.
    coming: u64,
    /// Keys being made for callers who wait. They are handed out at once, so the reserve does not have them.
    awaited: u64,
    /// Refills that put keys into the store.
    refills: u64,
    is_filling: bool,
    failures: u32,
    pause_until: Option<Instant>,
}

/// What is to be done for a pair that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// So few leased keys are left that more should be leased.
    pub(super) lease: bool,
    /// Keys should be made for the store.
    pub(super) refill: bool,
}

/// Counts the keys that a caller waits for, until dropped.
pub(super) struct Waiting<'a> {
    pair: &'a Pair,
    keys: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pair.waiting.fetch_sub(self.keys, Ordering::SeqCst);
    }
}

/// Keys that are being made. They count until this is dropped, which wakes those who wait.
pub(super) struct Begun {
    pair: Arc<Pair>,
    keys: u64,
    pub(super) purpose: Purpose,
}

impl Begun {
    pub(super) fn keys(&self) -> usize {
        usize::try_from(self.keys).unwrap_or(usize::MAX)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        *self.pair.stock.lock().being_made(self.purpose) -= self.keys;
        self.pair.added.notify_waiters();
    }
}

impl Pair {
    pub(super) fn new(master: SaeId, recipient: Recipient) -> Arc<Self> {
        let stock = Stock {
            blocks: Blocks::default(),
            demand: Demand::new(Instant::now()),
            stored: None,
            learnt_at: Instant::now(),
            is_used_since: false,
            in_work: 0,
            coming: 0,
            awaited: 0,
            refills: 0,
            is_filling: true,
            failures: 0,
            pause_until: None,
        };
        Arc::new(Self {
            master,
            recipient,
            stock: Mutex::new(stock),
            queue: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
            moving: tokio::sync::Mutex::default(),
            is_leasing: AtomicBool::new(false),
            added: Notify::new(),
        })
    }

    pub(super) fn as_ready(&self) -> ReadyPair<'_> {
        ReadyPair { master: &self.master, recipient: &self.recipient }
    }

    /// Notes that `number` keys are asked for.
    pub(super) fn note_demand(&self, number: usize) {
        self.stock.lock().note_demand(number);
    }

    /// Takes leased keys, if nobody waits, and notes the demand. `None`: there are not enough, and nothing
    /// was noted.
    pub(super) fn take_ready(
        &self,
        number: usize,
        demands: &Demands,
        bounds: Bounds,
        now: Timestamp,
    ) -> Option<(Vec<FreshKey>, Needs)> {
        let mut stock = self.stock.lock();
        if self.waited_for() > 0 {
            return None;
        }
        let keys = stock.blocks.pop(number, demands, now)?;
        let moment = stock.note_demand(number);
        Some((keys, stock.needs(bounds, now, moment)))
    }

    /// What is to be done after keys were taken.
    pub(super) fn needs(&self, bounds: Bounds, now: Timestamp) -> Needs {
        self.stock.lock().needs(bounds, now, Instant::now())
    }

    /// Counts `keys` among those waited for, until dropped.
    pub(super) fn wait_for(&self, keys: usize) -> Waiting<'_> {
        self.waiting.fetch_add(keys, Ordering::SeqCst);
        Waiting { pair: self, keys }
    }

    /// Keys that callers wait for.
    pub(super) fn waited_for(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Takes out exactly `number` keys that may still be handed out and meet `demands`; none if there are
    /// fewer.
    pub(super) fn pop(&self, number: usize, demands: &Demands, now: Timestamp) -> Option<Vec<FreshKey>> {
        self.stock.lock().blocks.pop(number, demands, now)
    }

    /// Adds leased keys.
    pub(super) fn push(&self, blocks: impl IntoIterator<Item = LeasedBlock>) {
        self.stock.lock().blocks.extend(blocks);
        self.added.notify_waiters();
    }

    /// Takes all leased keys out.
    pub(super) fn empty(&self) -> Vec<LeasedBlock> {
        self.stock.lock().blocks.take_all()
    }

    /// Leased keys that may still be handed out.
    pub(super) fn leased(&self, now: Timestamp) -> u64 {
        self.stock.lock().blocks.usable(now)
    }

    /// Leased keys that may still be handed out, or given back and leased again.
    pub(super) fn held(&self, now: Timestamp) -> u64 {
        self.stock.lock().blocks.held(now)
    }

    /// Whether leased keys waited too long.
    pub(super) fn has_overdue(&self, now: Timestamp) -> bool {
        let mut stock = self.stock.lock();
        stock.blocks.usable(now);
        stock.blocks.is_overdue()
    }

    /// Takes out the leased keys that waited too long.
    pub(super) fn take_overdue(&self, now: Timestamp) -> Vec<LeasedBlock> {
        self.stock.lock().blocks.take_overdue(now)
    }

    /// Notes that `keys` went back to the store.
    pub(super) fn gave_back(&self, keys: u64) {
        let mut stock = self.stock.lock();
        stock.stored = stock.stored.map(|stored| stored + keys);
    }

    /// Whether the store may have ready keys, or will when overdue ones are given back.
    pub(super) fn may_lease(&self) -> bool {
        self.stock.lock().may_lease()
    }

    /// Whether to count the keys in the store before deciding on a refill: they were never counted, the count
    /// is old, or the pair is in use and other replicas may have taken some.
    pub(super) fn should_count(&self, is_shared: bool) -> bool {
        let stock = self.stock.lock();
        let believed = if is_shared && stock.is_used_since { FRESH } else { RECOUNT };
        stock.stored.is_none() || stock.learnt_at.elapsed() >= believed
    }

    /// Whether the keys in the store were never counted.
    pub(super) fn is_unknown(&self) -> bool {
        self.stock.lock().stored.is_none()
    }

    /// Keys that the store has, as far as this daemon knows.
    pub(super) fn stored(&self) -> u64 {
        self.stock.lock().stored.unwrap_or(0)
    }

    /// How many refills put keys into the store. Read before the store is counted, for [`Self::set_stored`].
    pub(super) fn refills(&self) -> u64 {
        self.stock.lock().refills
    }

    /// Notes the count of the store. `refills` is what [`Self::refills`] was before the count. If another
    /// refill has ended since, the count may miss its keys: then notes nothing and returns `false`.
    pub(super) fn set_stored(&self, keys: u64, refills: u64) -> bool {
        let mut stock = self.stock.lock();
        if stock.refills != refills {
            return false;
        }
        stock.stored = Some(keys);
        stock.learnt_at = Instant::now();
        stock.is_used_since = false;
        true
    }

    /// Notes that `keys` left the store; with `all`, the store has no others.
    pub(super) fn took(&self, keys: u64, all: bool) {
        let mut stock = self.stock.lock();
        if all {
            stock.stored = Some(0);
            stock.learnt_at = Instant::now();
        } else {
            stock.stored = stock.stored.map(|stored| stored.saturating_sub(keys));
        }
    }

    /// How many blocks of at most `block` keys one lease should take: as many as the pair uses in half a
    /// second.
    pub(super) fn lease_blocks(&self, block: u64, most: u32) -> u32 {
        let half_second = self.stock.lock().half_second(Instant::now());
        u32::try_from(half_second.div_ceil(block.max(1))).unwrap_or(most).clamp(1, most)
    }

    /// Begins to make missing keys: at most a delivery, and beyond one block only full blocks. They are for memory
    /// if it `has_room` and has less than the pair uses in half a second; otherwise for the store. Where replicas
    /// share the store, each makes at most half of what is missing, or one block.
    pub(super) fn begin_refill(
        self: &Arc<Self>,
        bounds: Bounds,
        has_room: bool,
        is_shared: bool,
        now: Timestamp,
    ) -> Option<Begun> {
        let mut stock = self.stock.lock();
        let moment = Instant::now();
        let missing = stock.missing(bounds, now, moment)?;
        let mut keys = missing.min(bounds.delivery);
        if is_shared {
            let being_made = stock.in_work + stock.coming;
            let half = u64::midpoint(missing, being_made);
            let share = (half - half % bounds.block).max(bounds.block);
            keys = keys.min(share.saturating_sub(being_made));
        }
        if keys > bounds.block {
            keys -= keys % bounds.block;
        }
        if keys == 0 {
            return None;
        }
        let in_memory = stock.blocks.usable(now) + stock.coming;
        let purpose =
            if has_room && in_memory < stock.half_second(moment) { Purpose::Ahead } else { Purpose::Ready };
        *stock.being_made(purpose) += keys;
        Some(Begun { pair: Arc::clone(self), keys, purpose })
    }

    /// Begins to make keys for those who wait, at most `most`; the first of them asks for `number`. `None`
    /// while enough are coming.
    pub(super) fn begin_batch(self: &Arc<Self>, number: usize, most: u64, now: Timestamp) -> Option<Begun> {
        let mut stock = self.stock.lock();
        let wanted = self.waited_for().max(number) as u64;
        let keys = wanted.saturating_sub(stock.blocks.usable(now) + stock.coming + stock.awaited).min(most);
        if keys == 0 {
            return None;
        }
        stock.awaited += keys;
        Some(Begun { pair: Arc::clone(self), keys, purpose: Purpose::Waiting })
    }

    /// Leaves out of `begun` what is no longer missing after a new count of the shared store.
    pub(super) fn still_missing(&self, begun: &mut Begun, bounds: Bounds, now: Timestamp) {
        let mut stock = self.stock.lock();
        let target = stock.demand.target(bounds, Instant::now());
        *stock.being_made(begun.purpose) -= begun.keys;
        let missing = target.saturating_sub(stock.have(now).unwrap_or(target));
        begun.keys = missing.min(begun.keys);
        *stock.being_made(begun.purpose) += begun.keys;
    }

    /// Ends a refill: `Ok` has the keys that were made for memory. After a failure the pair rests, longer each
    /// time.
    pub(super) fn end_refill<E>(&self, begun: Begun, made: Result<Vec<LeasedBlock>, E>) {
        let mut stock = self.stock.lock();
        // A count taken between the commit and now already includes these keys.
        stock.is_used_since = true;
        if let Ok(made) = made {
            match begun.purpose {
                Purpose::Ready => {
                    stock.stored = stock.stored.map(|stored| stored + begun.keys);
                    stock.refills += 1;
                }
                Purpose::Ahead | Purpose::Waiting => stock.blocks.extend(made),
            }
            stock.failures = 0;
            stock.pause_until = None;
        } else {
            stock.failures = stock.failures.saturating_add(1);
            stock.pause_until = Some(Instant::now() + PAUSE.after(stock.failures));
        }
        // Before `begun` is dropped, which takes the lock.
        drop(stock);
    }

    /// Whether the pair can be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        let stock = self.stock.lock();
        let being_made = stock.in_work + stock.coming + stock.awaited;
        being_made == 0 && self.waited_for() == 0 && stock.demand.is_idle(Instant::now())
    }
}

impl Stock {
    /// Notes that keys are asked for, and returns when.
    fn note_demand(&mut self, number: usize) -> Instant {
        let moment = Instant::now();
        self.demand.note(number as u64, moment);
        self.is_used_since = true;
        moment
    }

    /// Keys that the pair uses in half a second.
    fn half_second(&mut self, moment: Instant) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let keys = (self.demand.rate(moment) / 2.0).clamp(0.0, 1e9) as u64;
        keys
    }

    fn being_made(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Ready => &mut self.in_work,
            Purpose::Ahead => &mut self.coming,
            Purpose::Waiting => &mut self.awaited,
        }
    }

    fn needs(&mut self, bounds: Bounds, now: Timestamp, moment: Instant) -> Needs {
        let quarter_second = (self.half_second(moment) / 2).max(16);
        Needs {
            lease: self.may_lease() && self.blocks.usable(now) < quarter_second,
            refill: self.stored.is_none() || self.missing(bounds, now, moment).is_some(),
        }
    }

    /// How many keys should be made, when it is time to make any.
    fn missing(&mut self, bounds: Bounds, now: Timestamp, moment: Instant) -> Option<u64> {
        if self.pause_until.is_some_and(|until| moment < until) {
            return None;
        }
        let target = self.demand.target(bounds, moment);
        let have = self.have(now)?;
        if have >= target {
            self.is_filling = false;
            return None;
        }
        // A large reserve is filled in whole deliveries.
        let step = if target >= LARGE * bounds.delivery { bounds.delivery } else { bounds.block };
        if have + step <= target || have < target.div_ceil(LOW_WATER_PART) {
            self.is_filling = true;
        }
        self.is_filling.then(|| target - have)
    }

    fn may_lease(&self) -> bool {
        self.stored != Some(0) || self.blocks.is_overdue() || self.learnt_at.elapsed() >= FRESH
    }

    /// Keys leased, in the store and being made for either; `None` while the store was not counted.
    fn have(&mut self, now: Timestamp) -> Option<u64> {
        Some(self.blocks.held(now) + self.stored? + self.in_work + self.coming)
    }
}
