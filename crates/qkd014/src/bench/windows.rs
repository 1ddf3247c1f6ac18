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

/// The first window, the last, and the one furthest from what is wanted: the slowest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Course {
    /// The first.
    pub first: f64,
    /// The last.
    pub last: f64,
    /// The least operations a second, or the longest time.
    pub worst: f64,
}

/// How figures went from window to window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverTime {
    /// How many windows there were.
    pub windows: usize,
    /// The length of the first.
    pub window_s: f64,
    /// Operations a second.
    pub operations_per_s: Course,
    /// 99 in a hundred operations were faster; `None` when no operation succeeded in one of the windows.
    pub p99_ms: Option<Course>,
}

impl OverTime {
    /// `None` when there are no windows.
    pub(super) fn of(windows: &[Window]) -> Option<Self> {
        let course = |values: &[f64], worse: fn(f64, f64) -> f64| {
            let worst = values.iter().copied().reduce(worse)?;
            Some(Course { first: *values.first()?, last: *values.last()?, worst })
        };
        let rates: Vec<f64> = windows.iter().map(|window| window.operations_per_s).collect();
        let times: Option<Vec<f64>> =
            windows.iter().map(|window| window.latency_ms.map(|times| times.p99)).collect();
        Some(Self {
            windows: windows.len(),
            window_s: windows.first()?.seconds,
            operations_per_s: course(&rates, f64::min)?,
            p99_ms: times.and_then(|times| course(&times, f64::max)),
        })
    }
}

/// The length of a window, and where to report it.
pub(super) struct Windows<'a> {
    pub(super) every: Duration,
    pub(super) tell: &'a dyn Fn(Window),
}

/// Reports each window until the load has `ended`. Returns the counts of the whole time, and the windows. An
/// operation that a thread counts late is in the next window; after the last window it is only in the sum.
pub(super) async fn count(
    clock: &Clock,
    tallies: &[Arc<Mutex<Tally>>],
    windows: Option<&Windows<'_>>,
    ended: impl Future<Output = Result<(), BenchError>>,
) -> Result<(Counts, Vec<Window>), BenchError> {
    let Some(Windows { every, tell }) = windows else {
        ended.await?;
        return Ok((take(tallies)?, Vec::new()));
    };
    let mut told = Vec::new();
    let mut ended = pin!(ended);
    let mut result = None;
    let mut all = Counts::new()?;
    let mut start = clock.counting();
    let mut window = |counts: &Counts, start: Instant, end: Instant| {
        let window = Window::new(counts, start - clock.counting(), end - start);
        tell(window.clone());
        told.push(window);
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
    Ok((all, told))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A window with so many operations in its second, all of them as slow as given.
    fn window(operations: u32, ms: u64) -> Window {
        let mut counts = Counts::new().unwrap();
        for _ in 0..operations {
            counts.times.record(ms * 1_000_000).unwrap();
        }
        Window::new(&counts, Duration::ZERO, Duration::from_secs(1))
    }

    #[test]
    fn a_fall_shows_in_the_first_the_last_and_the_worst_window() {
        let over = OverTime::of(&[window(90, 2), window(30, 40), window(60, 5)]).unwrap();
        assert_eq!((over.windows, over.window_s), (3, 1.0));
        assert_eq!(over.operations_per_s, Course { first: 90.0, last: 60.0, worst: 30.0 });
        let Course { first, last, worst } = over.p99_ms.unwrap();
        let near = |time: f64, ms: f64| (time - ms).abs() < ms / 100.0;
        assert!(near(first, 2.0) && near(last, 5.0) && near(worst, 40.0), "{over:?}");
    }

    #[test]
    fn a_window_in_which_nothing_succeeded_counts_as_none_a_second_and_has_no_times() {
        assert_eq!(OverTime::of(&[]), None);
        let over = OverTime::of(&[window(5, 2), window(0, 1)]).unwrap();
        assert_eq!(over.operations_per_s, Course { first: 5.0, last: 0.0, worst: 0.0 });
        assert_eq!(over.p99_ms, None);
    }
}
