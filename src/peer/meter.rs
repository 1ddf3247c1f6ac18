//! Counts and times of the calls to each peer.

use std::time::Duration;

use kme::KmeId;

use super::error::PeerError;
use super::wire::{BATCHES_PATH, COMPARISON_PATH, INFO_PATH, POOL_SETS_PATH, VOID_PATH};
use crate::metrics::{Counter, Counters, Histogram, Labels, Registry, Seconds, Timings, counter, timing};

const CALLS: [&str; 5] = [POOL_SETS_PATH, COMPARISON_PATH, BATCHES_PATH, VOID_PATH, INFO_PATH];
const ANSWERED: &str = "answered";
const OUTCOMES: [&str; 7] = [ANSWERED, "unreachable", "slow", "paused", "busy", "refused", "garbled"];

/// The calls of one daemon.
#[derive(Clone, Debug, Default)]
pub struct PeerMeters {
    calls: Counters,
    durations: Timings,
    repeats: Counters,
}

/// The calls to one peer.
#[derive(Debug)]
pub struct PeerMeter {
    calls: Vec<CallMeter>,
    repeats: Counter,
}

#[derive(Debug)]
struct CallMeter {
    path: &'static str,
    outcomes: Vec<(&'static str, Counter)>,
    duration: Histogram<Seconds>,
}

impl PeerMeters {
    /// Meters that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register("dqkd_peer_calls", "Calls to peers by their outcome", meters.calls.clone());
        registry.register(
            "dqkd_peer_call_duration_seconds",
            "Calls to peers, repetitions and waits included",
            meters.durations.clone(),
        );
        registry.register("dqkd_peer_call_repeats", "Attempts after the first", meters.repeats.clone());
        meters
    }

    /// The meter of one peer.
    pub fn of(&self, peer: &KmeId) -> PeerMeter {
        let labels = || Labels::new([("peer", peer.to_string())]);
        let call = |path| {
            let outcome =
                |outcome| (outcome, counter(&self.calls, labels().and("call", path).and("outcome", outcome)));
            let duration = timing(&self.durations, labels().and("call", path));
            CallMeter { path, outcomes: OUTCOMES.into_iter().map(outcome).collect(), duration }
        };
        PeerMeter { calls: CALLS.into_iter().map(call).collect(), repeats: counter(&self.repeats, labels()) }
    }
}

impl PeerMeter {
    /// Notes the end of a call.
    pub(super) fn note<T>(&self, path: &str, result: &Result<T, PeerError>, duration: Duration) {
        let Some(call) = self.calls.iter().find(|call| call.path == path) else { return };
        let outcome = outcome_of(result);
        if let Some((_, count)) = call.outcomes.iter().find(|(name, _)| *name == outcome) {
            count.inc();
        }
        call.duration.observe(duration);
    }

    /// Notes that a call is tried once more.
    pub(super) fn note_repeat(&self) {
        self.repeats.inc();
    }
}

fn outcome_of<T>(result: &Result<T, PeerError>) -> &'static str {
    match result {
        Ok(_) => ANSWERED,
        Err(PeerError::Unreachable { .. }) => "unreachable",
        Err(PeerError::Slow(_)) => "slow",
        Err(PeerError::Paused(_)) => "paused",
        Err(PeerError::Busy { .. }) => "busy",
        Err(PeerError::Refused { .. } | PeerError::Full { .. }) => "refused",
        Err(PeerError::Garbled { .. }) => "garbled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{encode, registry};

    #[test]
    fn every_call_and_outcome_has_a_counter_from_the_start() {
        let mut registry = registry();
        let peer: KmeId = "site-b".parse().unwrap();
        let meter = PeerMeters::register(&mut registry).of(&peer);
        let errors = [
            PeerError::Slow(peer.clone()),
            PeerError::Paused(peer.clone()),
            PeerError::Busy { kme: peer.clone(), message: String::new() },
            PeerError::Refused {
                kme: peer.clone(),
                status: http::StatusCode::GONE,
                message: String::new(),
                trouble: None,
            },
            PeerError::Garbled { kme: peer, what: "x" },
        ];
        let before = encode(&registry).unwrap();
        let zeros = before.lines().filter(|line| line.starts_with("dqkd_peer_calls_total{"));
        assert_eq!(zeros.filter(|line| line.ends_with(" 0")).count(), CALLS.len() * OUTCOMES.len());
        for error in errors {
            let outcome = outcome_of::<()>(&Err(error));
            assert!(OUTCOMES.contains(&outcome), "{outcome}");
        }
        meter.note(VOID_PATH, &Ok(()), Duration::from_millis(1));
        let line = format!("peer=\"site-b\",call=\"{VOID_PATH}\",outcome=\"answered\"}} 1\n");
        assert!(encode(&registry).unwrap().contains(&line));
    }
}
