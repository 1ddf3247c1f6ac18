//! A circuit breaker: a peer that failed again and again is left alone, then tried by one call at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use kme::Random;

/// Failures in a row that open the circuit.
const FAILURES_MAX: u32 = 3;
/// First pause; doubles with each further failure.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: one call every two seconds costs nobody much, and reserves fill soon after a link is back.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Whether a peer is being called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused without asking the peer.
    Open,
    /// One call is trying whether the peer is back.
    Trying,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    closed_until: Option<Instant>,
    trying: bool,
}

pub(super) struct Breaker {
    random: Arc<dyn Random>,
    state: Mutex<State>,
}

/// Leave for one call. Dropped without a verdict, the call counts as neither success nor failure.
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    is_trial: bool,
}

impl Breaker {
    pub(super) fn new(random: Arc<dyn Random>) -> Self {
        Self { random, state: Mutex::default() }
    }

    /// Leave for one call; `None` while the circuit is open.
    pub(super) fn enter(&self) -> Option<Leave<'_>> {
        let mut state = self.lock();
        let Some(until) = state.closed_until else {
            return Some(Leave { breaker: self, is_trial: false });
        };
        if state.trying || Instant::now() < until {
            return None;
        }
        state.trying = true;
        Some(Leave { breaker: self, is_trial: true })
    }

    pub(super) fn state(&self) -> BreakerState {
        let state = self.lock();
        match state.closed_until {
            None => BreakerState::Closed,
            Some(_) if state.trying => BreakerState::Trying,
            Some(_) => BreakerState::Open,
        }
    }

    /// Half of the pause is certain, half is drawn, so that sites do not knock in step.
    fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(FAILURES_MAX).min(16);
        let most = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
        most / 2 + jitter(&*self.random, most / 2)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration up to `most`; none when the generator fails, which only makes retries more regular.
pub(super) fn jitter(random: &dyn Random, most: Duration) -> Duration {
    let mut byte = [0];
    if random.fill(&mut byte).is_err() {
        return Duration::ZERO;
    }
    most.mul_f64(f64::from(byte[0]) / 255.0)
}

impl Leave<'_> {
    /// The peer answered, whatever it said.
    pub(super) fn answered(self) {
        let mut state = self.breaker.lock();
        state.failures = 0;
        state.closed_until = None;
    }

    /// The peer did not answer.
    pub(super) fn failed(self) {
        let mut state = self.breaker.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            state.closed_until = Some(Instant::now() + self.breaker.pause(state.failures));
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.breaker.lock().trying = false;
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
        tokio::time::advance(PAUSE_MIN).await;
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
        tokio::time::advance(PAUSE_MIN).await;
        drop(breaker.enter().unwrap());
        breaker.enter().unwrap().failed();
        tokio::time::advance(Duration::from_millis(249)).await;
        assert!(breaker.enter().is_none(), "the second pause is at least as long as the first may be");
        tokio::time::advance(PAUSE_MIN + Duration::from_millis(1)).await;
        assert!(breaker.enter().is_some());
    }

    #[test]
    fn pauses_are_bounded() {
        let breaker = Breaker::new(Arc::new(OsRandom));
        for failures in 0..1000 {
            assert!(breaker.pause(failures) <= PAUSE_MAX);
        }
    }
}
