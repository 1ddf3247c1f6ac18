//! A circuit breaker. An address that failed several times in a row is not called for a moment; then one call
//! at a time tries it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use kme::{Backoff, Random};
use parking_lot::Mutex;

/// Failures in a row that open the circuit.
const FAILURES_MAX: u32 = 3;
/// Pauses while the circuit is open. One call every two seconds costs little, and reserves fill soon after a
/// link is back.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

/// Whether calls to an address go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused without asking the peer.
    Open,
    /// One call is finding out whether the peer is back.
    Trying,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
    trying: bool,
}

pub(super) struct Breaker {
    random: Arc<dyn Random>,
    state: Mutex<State>,
}

/// Permission for one call. Dropped without a verdict, the call counts as neither success nor failure.
pub(super) struct CallPermit<'a> {
    breaker: &'a Breaker,
    is_trial: bool,
}

impl Breaker {
    pub(super) fn new(random: Arc<dyn Random>) -> Self {
        Self { random, state: Mutex::default() }
    }

    /// Permission for one call; `None` while the circuit is open.
    pub(super) fn enter(&self) -> Option<CallPermit<'_>> {
        let mut state = self.state.lock();
        let Some(until) = state.open_until else {
            return Some(CallPermit { breaker: self, is_trial: false });
        };
        if state.trying || Instant::now() < until {
            return None;
        }
        state.trying = true;
        Some(CallPermit { breaker: self, is_trial: true })
    }

    pub(super) fn state(&self) -> BreakerState {
        let state = self.state.lock();
        match state.open_until {
            None => BreakerState::Closed,
            Some(_) if state.trying => BreakerState::Trying,
            Some(_) => BreakerState::Open,
        }
    }
}

impl CallPermit<'_> {
    /// The peer answered, whatever it said.
    pub(super) fn answered(self) {
        let mut state = self.breaker.state.lock();
        state.failures = 0;
        state.open_until = None;
    }

    /// The peer did not answer.
    pub(super) fn failed(self) {
        let mut state = self.breaker.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            let openings = state.failures - FAILURES_MAX + 1;
            state.open_until = Some(Instant::now() + PAUSE.jittered(openings, &*self.breaker.random));
        }
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.breaker.state.lock().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use super::*;

    fn opened() -> Breaker {
        let breaker = Breaker::new(Arc::new(OsRandom));
        for _ in 0..FAILURES_MAX {
            breaker.enter().unwrap().failed();
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_the_circuit_and_an_answer_between_them_does_not() {
        let breaker = Breaker::new(Arc::new(OsRandom));
        for _ in 1..FAILURES_MAX {
            breaker.enter().unwrap().failed();
        }
        breaker.enter().unwrap().answered();
        for _ in 1..FAILURES_MAX {
            breaker.enter().unwrap().failed();
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.enter().unwrap().failed();
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.enter().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_one_call_at_a_time_tries_and_its_answer_closes_the_circuit() {
        let breaker = opened();
        tokio::time::advance(PAUSE.after(1)).await;
        let trial = breaker.enter().unwrap();
        assert_eq!(breaker.state(), BreakerState::Trying);
        assert!(breaker.enter().is_none(), "a second call during the trial");
        trial.answered();
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_trial_pauses_longer_and_a_dropped_one_lets_the_next_try() {
        let breaker = opened();
        tokio::time::advance(PAUSE.after(1)).await;
        drop(breaker.enter().unwrap());
        breaker.enter().unwrap().failed();
        tokio::time::advance(Duration::from_millis(249)).await;
        assert!(breaker.enter().is_none(), "the second pause is at least as long as the first may be");
        tokio::time::advance(PAUSE.after(1) + Duration::from_millis(1)).await;
        assert!(breaker.enter().is_some());
    }
}
