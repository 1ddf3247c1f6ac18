//! What one pair has in this daemon's memory: leased keys, the measure of its demand, who waits for more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kme::{Backoff, Demands, FreshKey, Recipient, SaeId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::blocks::Blocks;
use super::demand::{Bounds, Demand};
use crate::store::{LeasedBlock, ReadyPair};

/// A reserve is filled up to its target when a whole block is missing, and below this part of a small target.
const LOW_WATER_PART: u64 = 2;
/// What is known of the store is believed for this long where other replicas may have changed it.
const FRESH: Duration = Duration::from_secs(1);
/// Where replicas share a store, a second batch is begun for a pair while at least this many blocks are missing.
const SHARED_MISSING: u64 = 4;
/// Ready keys pass the half of their life unseen, so that the store's share is counted anew this often in any case.
const RECOUNT: Duration = Duration::from_secs(10);

/// Pause after failed refills: short, so that a reserve fills soon after the cause has gone.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

/// One pair.
pub(super) struct Pair {
    pub(super) master: SaeId,
    pub(super) recipient: Recipient,
    hand: Mutex<Hand>,
    /// Held by the caller that is served next; the others wait for it in the order they came.
    pub(super) queue: tokio::sync::Mutex<()>,
    /// Keys that they wait for.
    waiting: AtomicUsize,
    /// Held while keys move from the store to the hand, and while both are counted.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// A lease ahead of need is under way.
    pub(super) is_leasing: AtomicBool,
    /// Rings whenever keys were added.
    pub(super) added: Notify,
}

struct Hand {
    blocks: Blocks,
    demand: Demand,
    /// Keys that the store has ready, as far as this daemon knows; `None`: never looked. Other replicas take from
    /// the same and add to it.
    stored: Option<u64>,
    /// When this daemon last learnt how many that are.
    learnt_at: Instant,
    /// Keys were asked for or made since.
    is_used_since: bool,
    /// Keys being made for the store.
    in_work: u64,
    /// Refills that put keys into the store.
    refills: u64,
    is_filling: bool,
    failures: u32,
    pause_until: Option<Instant>,
}

/// What is to be done for a pair that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// The hand is so low that a lease should come before it is empty.
    pub(super) lease: bool,
    /// Keys should be made for the store.
    pub(super) refill: bool,
}

/// Keys that a caller waits for, while it does.
pub(super) struct Waiting<'a> {
    pair: &'a Pair,
    keys: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pair.waiting.fetch_sub(self.keys, Ordering::SeqCst);
    }
}

impl Pair {
    pub(super) fn new(master: SaeId, recipient: Recipient) -> Arc<Self> {
        let hand = Hand {
            blocks: Blocks::default(),
            demand: Demand::new(Instant::now()),
            stored: None,
            learnt_at: Instant::now(),
            is_used_since: false,
            in_work: 0,
            refills: 0,
            is_filling: true,
            failures: 0,
            pause_until: None,
        };
        Arc::new(Self {
            master,
            recipient,
            hand: Mutex::new(hand),
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
        self.hand.lock().note_demand(number);
    }

    /// Takes keys that are in the hand, if nobody waits, and notes that they were asked for; `None` when there are
    /// not enough, and then nothing is noted either.
    pub(super) fn take_ready(
        &self,
        number: usize,
        demands: &Demands,
        bounds: Bounds,
        block: u64,
        now: Timestamp,
    ) -> Option<(Vec<FreshKey>, Needs)> {
        let mut hand = self.hand.lock();
        if self.waited_for() > 0 {
            return None;
        }
        let keys = hand.blocks.pop(number, demands, now)?;
        let moment = hand.note_demand(number);
        Some((keys, hand.needs(bounds, block, now, moment)))
    }

    /// What is to be done after keys were taken.
    pub(super) fn needs(&self, bounds: Bounds, block: u64, now: Timestamp) -> Needs {
        self.hand.lock().needs(bounds, block, now, Instant::now())
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

    /// Exactly `number` keys that may still be handed out and meet `demands`; none when there are fewer.
    pub(super) fn pop(&self, number: usize, demands: &Demands, now: Timestamp) -> Option<Vec<FreshKey>> {
        self.hand.lock().blocks.pop(number, demands, now)
    }

    /// Adds leased keys.
    pub(super) fn push(&self, blocks: impl IntoIterator<Item = LeasedBlock>) {
        self.hand.lock().blocks.extend(blocks);
        self.added.notify_waiters();
    }

    /// Takes everything out of the hand.
    pub(super) fn empty(&self) -> Vec<LeasedBlock> {
        self.hand.lock().blocks.take_all()
    }

    /// Keys in the hand that may still be handed out.
    pub(super) fn in_hand(&self, now: Timestamp) -> u64 {
        self.hand.lock().blocks.usable(now)
    }

    /// Whether the store may have ready keys.
    pub(super) fn may_lease(&self) -> bool {
        self.hand.lock().may_lease()
    }

    /// Whether the store's share should be counted before a refill is judged: it never was, it was long ago, or the
    /// pair is in use and replicas, which share the store, may have taken from it.
    pub(super) fn should_count(&self, is_shared: bool) -> bool {
        let hand = self.hand.lock();
        let believed = if is_shared && hand.is_used_since { FRESH } else { RECOUNT };
        hand.stored.is_none() || hand.learnt_at.elapsed() >= believed
    }

    /// Whether the store's share is not known yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.hand.lock().stored.is_none()
    }

    /// Keys that the store has, as far as this daemon knows.
    pub(super) fn stored(&self) -> u64 {
        self.hand.lock().stored.unwrap_or(0)
    }

    /// How many refills put keys into the store. Asked before the store is counted.
    pub(super) fn refills(&self) -> u64 {
        self.hand.lock().refills
    }

    /// Notes what the store has, as counted after `refills` of [`Self::refills`]. Returns `false` and notes nothing when
    /// another refill has ended since: the count may be without its keys.
    pub(super) fn set_stored(&self, keys: u64, refills: u64) -> bool {
        let mut hand = self.hand.lock();
        if hand.refills != refills {
            return false;
        }
        hand.stored = Some(keys);
        hand.learnt_at = Instant::now();
        hand.is_used_since = false;
        true
    }

    /// Notes that `keys` left the store; with `all`, no others are there.
    pub(super) fn took(&self, keys: u64, all: bool) {
        let mut hand = self.hand.lock();
        if all {
            hand.stored = Some(0);
            hand.learnt_at = Instant::now();
        } else {
            hand.stored = hand.stored.map(|stored| stored.saturating_sub(keys));
        }
    }

    /// How many blocks of at most `block` keys one lease should take: what half a second uses.
    pub(super) fn lease_blocks(&self, block: u64, most: u32) -> u32 {
        let rate = self.hand.lock().demand.rate(Instant::now());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let half_second = (rate / 2.0).clamp(0.0, 1e9) as u64;
        u32::try_from(half_second.div_ceil(block.max(1))).unwrap_or(most).clamp(1, most)
    }

    /// How many keys should be made for the store now, at most `block`; they count as in work from here on. Where
    /// replicas share the store and little is missing, one batch at a time: others are making theirs, unseen.
    pub(super) fn begin_refill(
        &self,
        bounds: Bounds,
        block: u64,
        is_shared: bool,
        now: Timestamp,
    ) -> Option<usize> {
        let mut hand = self.hand.lock();
        let missing = hand.missing(bounds, block, now, Instant::now())?;
        if is_shared && hand.in_work > 0 && missing < SHARED_MISSING * block {
            return None;
        }
        let keys = missing.min(block);
        hand.in_work += keys;
        usize::try_from(keys).ok()
    }

    /// How many of the `keys` that [`Self::begin_refill`] began are still missing, now that the store was counted
    /// anew; only they count as in work from here on.
    pub(super) fn still_missing(&self, keys: usize, bounds: Bounds, now: Timestamp) -> usize {
        let mut hand = self.hand.lock();
        let target = hand.demand.target(bounds, Instant::now());
        let others = hand.have(now).unwrap_or(target).saturating_sub(keys as u64);
        let missing = target.saturating_sub(others).min(keys as u64);
        hand.in_work = hand.in_work.saturating_sub(keys as u64 - missing);
        usize::try_from(missing).unwrap_or(keys)
    }

    /// Ends what [`Self::begin_refill`] began. After a failure the pair rests, longer each time.
    pub(super) fn end_refill(&self, keys: usize, is_made: bool) {
        let mut hand = self.hand.lock();
        hand.in_work = hand.in_work.saturating_sub(keys as u64);
        // A count that was taken between the commit and now has these keys already.
        hand.is_used_since = true;
        if is_made {
            hand.stored = hand.stored.map(|stored| stored + keys as u64);
            hand.refills += 1;
            hand.failures = 0;
            hand.pause_until = None;
        } else {
            hand.failures = hand.failures.saturating_add(1);
            hand.pause_until = Some(Instant::now() + PAUSE.after(hand.failures));
        }
        drop(hand);
        self.added.notify_waiters();
    }

    /// Whether nothing of the pair is worth remembering.
    pub(super) fn is_idle(&self) -> bool {
        let hand = self.hand.lock();
        hand.in_work == 0 && self.waited_for() == 0 && hand.demand.is_idle(Instant::now())
    }
}

impl Hand {
    /// Notes that keys are asked for, and returns when.
    fn note_demand(&mut self, number: usize) -> Instant {
        let moment = Instant::now();
        self.demand.note(number as u64, moment);
        self.is_used_since = true;
        moment
    }

    fn needs(&mut self, bounds: Bounds, block: u64, now: Timestamp, moment: Instant) -> Needs {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let quarter_second = (self.demand.rate(moment) / 4.0).clamp(16.0, 1e9) as u64;
        Needs {
            lease: self.may_lease() && self.blocks.usable(now) < quarter_second,
            refill: self.stored.is_none() || self.missing(bounds, block, now, moment).is_some(),
        }
    }

    /// How many keys should be made, when it is time to make any.
    fn missing(&mut self, bounds: Bounds, block: u64, now: Timestamp, moment: Instant) -> Option<u64> {
        if self.pause_until.is_some_and(|until| moment < until) {
            return None;
        }
        let target = self.demand.target(bounds, moment);
        let have = self.have(now)?;
        if have >= target {
            self.is_filling = false;
            return None;
        }
        if have + block <= target || have < target.div_ceil(LOW_WATER_PART) {
            self.is_filling = true;
        }
        self.is_filling.then(|| target - have)
    }

    fn may_lease(&self) -> bool {
        self.stored != Some(0) || self.learnt_at.elapsed() >= FRESH
    }

    /// Keys in the hand, in the store and in work; `None` while the store's share is not known.
    fn have(&mut self, now: Timestamp) -> Option<u64> {
        Some(self.blocks.usable(now) + self.stored? + self.in_work)
    }
}
