//! Figures of consecutive windows of time, while the load runs.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::error::BenchError;
use super::pace::Clock;
use super::tally::{Counts, Tally};
use super::times::{Times, float};

/// What was counted in one window of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// When it began, in seconds since the clock started.
    pub start_s: f64,
    /// How long it is.
    pub seconds: f64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations a second.
    pub operations_per_s: f64,
    /// Of whole operations; `None` when none succeeded.
    pub latency_ms: Option<Times>,
    /// Of `enc_keys` in `pair`.
    pub enc_latency_ms: Option<Times>,
    /// Of `dec_keys` in `pair`.
    pub dec_latency_ms: Option<Times>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by reason.
    pub troubles: BTreeMap<&'static str, u64>,
}

impl Window {
    fn new(counts: &Counts, start: Duration, length: Duration) -> Self {
        let (operations, seconds) = (counts.times.len(), length.as_secs_f64());
        Self {
            start_s: start.as_secs_f64(),
            seconds,
            operations,
            operations_per_s: float(operations) / seconds,
            latency_ms: Times::of_some(&counts.times),
            enc_latency_ms: Times::of_some(&counts.enc_times),
            dec_latency_ms: Times::of_some(&counts.dec_times),
            statuses: counts.statuses.clone(),
            troubles: counts.troubles.clone(),
        }
    }
}

/// The length of a window, and where to report it.
pub(super) struct Windows<'a> {
    pub(super) every: Duration,
    pub(super) tell: &'a dyn Fn(Window),
}

/// Reports each window until the load has `ended`. Returns the counts of the whole time. An operation that a
/// thread counts late is in the next window; after the last window it is only in the sum.
pub(super) async fn count(
    clock: &Clock,
    tallies: &[Arc<Mutex<Tally>>],
    windows: Option<&Windows<'_>>,
    ended: impl Future<Output = Result<(), BenchError>>,
) -> Result<Counts, BenchError> {
    let Some(Windows { every, tell }) = windows else {
        ended.await?;
        return take(tallies);
    };
    let mut ended = pin!(ended);
    let mut result = None;
    let mut all = Counts::new()?;
    let mut start = clock.counting();
    let window = |counts: &Counts, start: Instant, end: Instant| {
        tell(Window::new(counts, start - clock.counting(), end - start));
    };
    while result.is_none() && start + *every <= clock.end() {
        let end = start + *every;
        result = timeout_at(end, &mut ended).await.ok();
        if result.is_none() {
            let counts = take(tallies)?;
            window(&counts, start, end);
            all.append(&counts)?;
            start = end;
        }
    }
    match result {
        Some(result) => result?,
        None => ended.await?,
    }
    let rest = take(tallies)?;
    if clock.end().saturating_duration_since(start) >= *every / 2 {
        window(&rest, start, clock.end());
    }
    all.append(&rest)?;
    Ok(all)
}

/// What was counted since the last time.
fn take(tallies: &[Arc<Mutex<Tally>>]) -> Result<Counts, BenchError> {
    let mut sum = Counts::new()?;
    for tally in tallies {
        let empty = Counts::new()?;
        let mut tally = tally.lock();
        let counts = std::mem::replace(&mut tally.counts, empty);
        drop(tally);
        sum.append(&counts)?;
    }
    Ok(sum)
}
