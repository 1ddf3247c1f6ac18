//! How much is searched, and the mutants: deliberate defects of the protocol.

use crate::state::{ENTITLED_MAX, Site, retrieval};

/// Where the keys of A go when every site has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Into the reserve: a ready row, from which they are leased.
    Reserve,
    /// Into memory, for requests that wait.
    OnDemand,
}

/// A batch that A will make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) keys: u8,
    /// The tick of A's clock at which it is made.
    pub(crate) born: i8,
}

impl Plan {
    /// All keys, as bits.
    pub(crate) const fn all(self) -> u8 {
        (1 << self.keys) - 1
    }
}

/// What is searched. Crashes, restarts and repeated messages are unlimited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) name: &'static str,
    pub(crate) plans: &'static [Plan],
    /// Where each retrieval of every key is held.
    pub(crate) entitled: &'static [Site],
    /// Life of every key, in ticks.
    pub(crate) life: i8,
    /// How long the master's copy stays after the hand-out, in ticks.
    pub(crate) master_ttl: i8,
    /// By how many ticks B's clock may be ahead of A's.
    pub(crate) skews: &'static [i8],
}

impl Scope {
    /// The retrievals of `key` held at `site`.
    pub(crate) fn held(&self, key: u8, site: Site) -> u8 {
        self.entitled
            .iter()
            .zip(0..ENTITLED_MAX)
            .filter(|(held, _)| **held == site)
            .fold(0, |bits, (_, entitled)| bits | retrieval(key, entitled))
    }

    /// All retrievals of a batch held at `site`.
    pub(crate) fn all_held(&self, plan: Plan, site: Site) -> u8 {
        (0..plan.keys).fold(0, |bits, key| bits | self.held(key, site))
    }

    /// Whether leased keys go back to the store, and A forgets batches, before they expire.
    pub(crate) const fn forgets_early(&self) -> bool {
        self.life > 2
    }

    /// The last tick, when everything has expired on both clocks.
    pub(crate) fn last_tick(&self) -> i8 {
        let born = self.plans.iter().map(|plan| plan.born).max().unwrap_or(0);
        let behind = self.skews.iter().map(|skew| -skew).max().unwrap_or(0).max(0);
        born + self.life + behind
    }
}

/// A deliberate defect of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A commits and hands out without waiting for the acknowledgement.
    HandOutBeforeAcknowledgement,
    /// B acknowledges a push before its commit.
    AcknowledgeBeforeCommit,
    /// After a crash of A leased keys are ready again.
    ForgetLease,
    /// A graceful stop returns keys that requests may still be handed.
    ReturnWhileServing,
    /// B leaves no tombstone for a void that came before its batch.
    ForgetTombstone,
    /// A retrieval is answered before its commit.
    AnswerBeforeCommit,
    /// B accepts a push of other content under a known ID as a repetition.
    IgnoreDigest,
    /// A retrieval does not check the expiry.
    ForgetExpiry,
    /// A hands out a key until it expires, without a margin for the recipient and its clock.
    NoMargin,
    /// After a commit of unknown outcome A voids at B without voiding at home first.
    VoidAtPeerFirst,
    /// After a commit of unknown outcome A voids a batch that has been leased since.
    VoidLeased,
    /// After a commit of unknown outcome A voids a batch that has expired, as if it had never been committed.
    VoidExpired,
    /// The same of a batch that A has forgotten because the master's copies have ended.
    VoidForgotten,
    /// A hands out leased keys that waited longer than they may.
    ForgetHold,
    /// The master may retrieve its copy until the key expires.
    ForgetCopyEnd,
}
