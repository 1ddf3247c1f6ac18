//! What one thread of the client has counted.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::error::BenchError;
use super::kept::KeptAnswers;

/// Times from 1 us to 10 minutes, to a thousandth, in nanoseconds.
const SHORTEST_NS: u64 = 1_000;
const LONGEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// Counts, and the answers behind them.
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// Of operations that succeeded, warm-up included.
    pub(super) answers: KeptAnswers,
}

/// Counts of operations that ended while the clock ran.
pub(super) struct Counts {
    /// Times of whole operations that succeeded.
    pub(super) times: Histogram<u64>,
    /// Times of their parts, for `pair`.
    pub(super) enc_times: Histogram<u64>,
    pub(super) dec_times: Histogram<u64>,
    /// Requests that were answered, by status.
    pub(super) statuses: BTreeMap<u16, u64>,
    /// What the first answer of each status that is a refusal says.
    pub(super) refusals: BTreeMap<u16, String>,
    /// Requests that were not answered, by reason.
    pub(super) troubles: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn new(answers_max: usize) -> Result<Self, BenchError> {
        Ok(Self { counts: Counts::new()?, answers: KeptAnswers::with_room_for(answers_max) })
    }
}

impl Counts {
    pub(super) fn new() -> Result<Self, BenchError> {
        let histogram = || {
            Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, DIGITS)
                .map_err(|error| BenchError(format!("no histogram: {error}")))
        };
        Ok(Self {
            times: histogram()?,
            enc_times: histogram()?,
            dec_times: histogram()?,
            statuses: BTreeMap::new(),
            refusals: BTreeMap::new(),
            troubles: BTreeMap::new(),
        })
    }

    pub(super) fn status(&mut self, status: u16) {
        *self.statuses.entry(status).or_default() += 1;
    }

    pub(super) fn trouble(&mut self, what: &'static str) {
        *self.troubles.entry(what).or_default() += 1;
    }

    /// Adds `other`.
    pub(super) fn append(&mut self, other: &Self) -> Result<(), BenchError> {
        let histograms = [
            (&mut self.times, &other.times),
            (&mut self.enc_times, &other.enc_times),
            (&mut self.dec_times, &other.dec_times),
        ];
        for (mine, others) in histograms {
            mine.add(others).map_err(|error| BenchError(format!("no sum of histograms: {error}")))?;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (status, text) in &other.refusals {
            self.refusals.entry(*status).or_insert_with(|| text.clone());
        }
        for (what, count) in &other.troubles {
            *self.troubles.entry(what).or_default() += count;
        }
        Ok(())
    }
}

/// Notes a time; one that is out of range counts as the longest.
pub(super) fn note(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}
