//! Counters of keys and batches at this site.

use std::collections::BTreeMap;
use std::time::Duration;

use kme::KmeId;

use super::{IntakeError, SupplyError};
use crate::metrics::{Counter, Counters, Histogram, Labels, Registry, Seconds, Timings, counter, timing};
use crate::peer::PeerError;

/// Why a batch is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// One order that the reserve does not serve.
    Order,
    /// Callers of one pair wait, and nothing is ready.
    Waiting,
    /// A reserve is refilled.
    Refill,
}

const CAUSES: [(Cause, &str); 3] =
    [(Cause::Order, "order"), (Cause::Waiting, "waiting"), (Cause::Refill, "refill")];
const PUSHED: [&str; 5] = ["stored", "not_sent", "mismatch", "refused", "failed"];
const RECEIVED: [&str; 10] = [
    "stored",
    "not_allowed",
    "refused",
    "too_few_pools",
    "mismatch",
    "conflict",
    "voided",
    "set_unavailable",
    "full",
    "unavailable",
];

/// The counters of one daemon, resolved for its configured peers.
#[derive(Debug)]
pub struct SupplyMeter {
    causes: Vec<CauseMeter>,
    peers: BTreeMap<KmeId, PeerBatches>,
    handed_out_ready: Counter,
    handed_out_made: Counter,
    voided: Counter,
    kept: Counter,
    retracted: Vec<(Retracted, Counter)>,
    generate: Histogram<Seconds>,
    regenerate: Histogram<Seconds>,
}

#[derive(Debug)]
struct CauseMeter {
    cause: Cause,
    made: Counter,
    failed: Counter,
    keys: Counter,
}

#[derive(Debug)]
struct PeerBatches {
    pushed: Vec<(&'static str, Counter)>,
    received: Vec<(&'static str, Counter)>,
    regenerated: Counter,
}

/// Result of retracting a batch at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retracted {
    /// The peer keeps none of it.
    Voided,
    /// Somebody had retrieved some of its keys.
    Kept,
    /// The peer could not be reached; the keys expire.
    LeftToExpire,
}

const RETRACTED: [(Retracted, &str); 3] =
    [(Retracted::Voided, "voided"), (Retracted::Kept, "kept"), (Retracted::LeftToExpire, "left_to_expire")];

impl SupplyMeter {
    /// A meter for `peers` that `registry` shows.
    pub fn register<'a>(registry: &mut Registry, peers: impl IntoIterator<Item = &'a KmeId>) -> Self {
        let mut counters = |name: &str, help: &str| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        };
        let one = |name: &'static str, value: &'static str| Labels::new([(name, value)]);
        let made = counters("dqkd_batches_made", "Batches of keys made here, and those that failed");
        let keys = counters("dqkd_keys_made", "Keys made here that every recipient's site has stored");
        let cause = |(cause, name): (Cause, &'static str)| CauseMeter {
            cause,
            made: counter(&made, one("cause", name).and("outcome", "made")),
            failed: counter(&made, one("cause", name).and("outcome", "failed")),
            keys: counter(&keys, one("cause", name)),
        };
        let causes = CAUSES.into_iter().map(cause).collect();
        let handed_out = counters("dqkd_keys_handed_out", "Keys that enc_keys answered with");
        let pushed = counters("dqkd_batches_pushed", "Batches pushed to peers");
        let received = counters("dqkd_batches_received", "Batches that peers pushed here");
        let regenerated = counters("dqkd_keys_regenerated", "Keys regenerated and stored here for a peer");
        let of_peer = |peer: &KmeId| {
            let label = || Labels::new([("peer", peer.to_string())]);
            let all = |family: &Counters, outcomes: &[&'static str]| {
                let one =
                    |outcome: &&'static str| (*outcome, counter(family, label().and("outcome", *outcome)));
                outcomes.iter().map(one).collect()
            };
            PeerBatches {
                pushed: all(&pushed, &PUSHED),
                received: all(&received, &RECEIVED),
                regenerated: counter(&regenerated, label()),
            }
        };
        let peers = peers.into_iter().map(|peer| (peer.clone(), of_peer(peer))).collect();
        let voided = counters("dqkd_keys_voided", "Keys that peers asked to void here");
        let retracted =
            counters("dqkd_batches_retracted", "Batches retracted here, by what became of them at the peer");
        let of_outcome = |(outcome, name)| (outcome, counter(&retracted, one("outcome", name)));
        let retracted = RETRACTED.into_iter().map(of_outcome).collect();
        let engine = Timings::default();
        let help = "Work of the extractor on the batches of one push, its wait for a thread included";
        registry.register("dqkd_engine_duration_seconds", help, engine.clone());
        Self {
            causes,
            peers,
            handed_out_ready: counter(&handed_out, one("source", "reserve")),
            handed_out_made: counter(&handed_out, one("source", "made")),
            voided: counter(&voided, one("outcome", "voided")),
            kept: counter(&voided, one("outcome", "kept")),
            retracted,
            generate: timing(&engine, one("operation", "generate")),
            regenerate: timing(&engine, one("operation", "regenerate")),
        }
    }

    pub(super) fn made<T>(&self, cause: Cause, batches: usize, keys: usize, made: &Result<T, SupplyError>) {
        let Some(meter) = self.causes.iter().find(|meter| meter.cause == cause) else { return };
        if made.is_ok() {
            meter.made.inc_by(batches as u64);
            meter.keys.inc_by(keys as u64);
        } else {
            meter.failed.inc();
        }
    }

    pub(super) fn handed_out_ready(&self, keys: usize) {
        self.handed_out_ready.inc_by(keys as u64);
    }

    pub(super) fn handed_out_made(&self, keys: usize) {
        self.handed_out_made.inc_by(keys as u64);
    }

    pub(super) fn pushed<T>(&self, peer: &KmeId, batches: usize, result: Result<T, &PeerError>) {
        let outcome = match result {
            Ok(_) => "stored",
            Err(error) if error.was_not_sent() => "not_sent",
            Err(error) if error.is_mismatch() => "mismatch",
            Err(PeerError::Refused { .. } | PeerError::Full { .. }) => "refused",
            Err(_) => "failed",
        };
        add(self.peers.get(peer).map(|peer| peer.pushed.as_slice()), outcome, batches);
    }

    pub(super) fn received<T>(&self, peer: &KmeId, batches: usize, result: &Result<T, IntakeError>) {
        let outcome = match result {
            Ok(_) => "stored",
            Err(IntakeError::NotAllowed(_)) => "not_allowed",
            Err(IntakeError::Refused(_)) => "refused",
            Err(IntakeError::Conflict) => "conflict",
            Err(IntakeError::Voided) => "voided",
            Err(IntakeError::TooFewPools { .. }) => "too_few_pools",
            Err(IntakeError::Mismatch) => "mismatch",
            Err(IntakeError::SetUnavailable { .. }) => "set_unavailable",
            Err(IntakeError::Full(_)) => "full",
            // The second is never the answer to a batch.
            Err(IntakeError::Unavailable(_) | IntakeError::NothingToCompare) => "unavailable",
        };
        add(self.peers.get(peer).map(|peer| peer.received.as_slice()), outcome, batches);
    }

    pub(super) fn regenerated(&self, peer: &KmeId, keys: usize) {
        if let Some(peer) = self.peers.get(peer) {
            peer.regenerated.inc_by(keys as u64);
        }
    }

    pub(super) fn voided(&self, voided: usize, kept: usize) {
        self.voided.inc_by(voided as u64);
        self.kept.inc_by(kept as u64);
    }

    pub(super) fn retracted(&self, outcome: Retracted) {
        if let Some((_, count)) = self.retracted.iter().find(|(known, _)| *known == outcome) {
            count.inc();
        }
    }

    pub(super) fn generate(&self, duration: Duration) {
        self.generate.observe(duration);
    }

    pub(super) fn regenerate(&self, duration: Duration) {
        self.regenerate.observe(duration);
    }
}

fn add(counters: Option<&[(&'static str, Counter)]>, outcome: &str, number: usize) {
    let found = counters.and_then(|counters| counters.iter().find(|(name, _)| *name == outcome));
    if let Some((_, count)) = found {
        count.inc_by(number as u64);
    }
}
