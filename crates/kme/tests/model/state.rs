//! One state of the model: what the two sites, the network and an observer hold.
//!
//! Small, `Copy` and hashed as one run of bytes, because an unoptimised search makes millions of them.

use std::hash::{Hash, Hasher};

use kme::Timestamp;

/// Batches that a state has room for.
pub(crate) const BATCHES_MAX: usize = 2;
/// Retrievals of one key that a state has room for.
pub(crate) const ENTITLED_MAX: u8 = 2;
/// How long leased keys may wait for their hand-out, in ticks of the clock.
pub(crate) const HOLD_TICKS: i8 = 1;
/// A tick, as long as [`kme::life::HOLD`].
const TICK_MS: i64 = 600_000;
/// Instead of a tick: it has not happened.
pub(crate) const NEVER: i8 = -1;

/// A is the source of all keys, B their recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    A,
    B,
}

/// What was pushed under a batch ID: what A made, or other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Content {
    Genuine,
    Other,
}

/// The work of A on a batch, in memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Not yet made.
    Unmade,
    /// Made and pushed; waits for the acknowledgement.
    Waiting,
    /// Acknowledged; not yet committed here.
    Acknowledged,
    /// The commit at A failed or its outcome is unknown. The batch must be voided at A, then at B.
    Doubtful,
    /// Retracted; the void must still be sent to B.
    Retracting,
    /// Finished, or forgotten in a crash.
    Over,
}

/// What the database of a site says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Unknown,
    Tombstone,
    Stored(Content),
    Voided(Content),
}

impl Row {
    const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Tombstone => 1,
            Self::Stored(Content::Genuine) => 2,
            Self::Stored(Content::Other) => 3,
            Self::Voided(Content::Genuine) => 4,
            Self::Voided(Content::Other) => 5,
        }
    }

    pub(crate) const fn is_stored(self) -> bool {
        matches!(self, Self::Stored(_))
    }
}

/// One batch at both sites. Sets of keys are bits, key 0 first. So are sets of retrievals, see [`retrieval`].
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// A, memory.
    pub(crate) work: Work,
    /// A, memory: keys leased and not handed out.
    pub(crate) leased: u8,
    /// A, memory: the tick of the last lease. Also for the observer, so no crash forgets it.
    pub(crate) leased_at: i8,
    /// A, durable: the batch.
    pub(crate) at_a: Row,
    /// A, durable: the tick at which the master's copies end.
    pub(crate) copy_ends: i8,
    /// A, durable: keys of its ready row.
    pub(crate) ready: u8,
    /// A, durable: keys voided.
    pub(crate) void_at_a: u8,
    /// B, durable: the batch.
    pub(crate) at_b: Row,
    /// B, durable: keys voided.
    pub(crate) void_at_b: u8,
    /// Durable at the site of each: retrievals used up.
    pub(crate) used: u8,
    /// Memory of the site of each: retrievals whose answer is still to be sent.
    pub(crate) answering: u8,
    /// Network: B sent its acknowledgement. A message that was sent may arrive at any time, any number of
    /// times.
    pub(crate) acknowledged: bool,
    /// Network: A sent a void.
    pub(crate) void_sent: bool,
    /// Observer: keys handed out.
    pub(crate) handed: u8,
    /// Observer: keys handed out more than once.
    pub(crate) handed_again: u8,
    /// Observer: retrievals answered with the key.
    pub(crate) answered: u8,
    /// Observer: retrievals answered with the key more than once.
    pub(crate) answered_again: u8,
    /// Observer: keys whose genuine bytes were handed out or read for an answer.
    pub(crate) genuine: u8,
    /// Observer: keys of which other bytes were read for an answer.
    pub(crate) other: u8,
    /// Observer: the tick until which the master must be able to retrieve its copies of the keys handed out.
    pub(crate) owed_until: i8,
    /// Observer: a master retrieved a copy after its end.
    pub(crate) stale: bool,
    /// Observer: keys that were leased when A crashed.
    pub(crate) lost: u8,
    /// Observer: B committed a void of the batch.
    pub(crate) void_done: bool,
    /// Observer: a key was handed out that could not be retrieved at B at that moment.
    pub(crate) twinless: bool,
    /// Observer: an expired key was handed out or read for an answer.
    pub(crate) late: bool,
}

impl Batch {
    pub(crate) const UNMADE: Self = Self {
        work: Work::Unmade,
        leased: 0,
        leased_at: NEVER,
        at_a: Row::Unknown,
        copy_ends: NEVER,
        ready: 0,
        void_at_a: 0,
        at_b: Row::Unknown,
        void_at_b: 0,
        used: 0,
        answering: 0,
        acknowledged: false,
        void_sent: false,
        handed: 0,
        handed_again: 0,
        answered: 0,
        answered_again: 0,
        genuine: 0,
        other: 0,
        owed_until: NEVER,
        stale: false,
        lost: 0,
        void_done: false,
        twinless: false,
        late: false,
    };

    fn bytes(&self) -> [u8; 25] {
        [
            self.work as u8,
            self.leased,
            self.leased_at.cast_unsigned(),
            self.at_a.code(),
            self.copy_ends.cast_unsigned(),
            self.ready,
            self.void_at_a,
            self.at_b.code(),
            self.void_at_b,
            self.used,
            self.answering,
            u8::from(self.acknowledged),
            u8::from(self.void_sent),
            self.handed,
            self.handed_again,
            self.answered,
            self.answered_again,
            self.genuine,
            self.other,
            self.owed_until.cast_unsigned(),
            u8::from(self.stale),
            self.lost,
            u8::from(self.void_done),
            u8::from(self.twinless),
            u8::from(self.late),
        ]
    }
}

impl Hash for Batch {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.bytes());
    }
}

/// One state of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) batches: [Batch; BATCHES_MAX],
    /// A's clock in ticks.
    pub(crate) clock: i8,
    /// By how much B's clock is ahead of A's.
    pub(crate) skew: i8,
}

impl State {
    pub(crate) fn ticks(&self, site: Site) -> i64 {
        match site {
            Site::A => i64::from(self.clock),
            Site::B => i64::from(self.clock) + i64::from(self.skew),
        }
    }

    pub(crate) fn now(&self, site: Site) -> Timestamp {
        moment(self.ticks(site))
    }
}

/// The moment of a tick.
pub(crate) fn moment(ticks: i64) -> Timestamp {
    Timestamp::from_ms(ticks * TICK_MS)
}

/// The bit of a key.
pub(crate) const fn bit(key: u8) -> u8 {
    1 << key
}

/// The bit of the retrieval of `key` that the `entitled`-th party holds.
pub(crate) const fn retrieval(key: u8, entitled: u8) -> u8 {
    1 << (key * ENTITLED_MAX + entitled)
}
