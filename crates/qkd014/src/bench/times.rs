//! Percentiles of times.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Half are shorter.
    pub p50: f64,
    /// Nine in ten are.
    pub p90: f64,
    /// 99 in a hundred.
    pub p99: f64,
    /// 999 in a thousand.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
}

impl Times {
    /// `None` when there are none.
    pub(super) fn of_some(times: &Histogram<u64>) -> Option<Self> {
        (!times.is_empty()).then(|| Self::of(times))
    }

    /// From nanoseconds; all 0 when there are none.
    pub(super) fn of(times: &Histogram<u64>) -> Self {
        let ms = |nanos: u64| float(nanos) / 1e6;
        let at = |quantile| ms(times.value_at_quantile(quantile));
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: ms(times.max()) }
    }
}

/// A count, for division.
pub(super) fn float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds here are far below 2^52")]
    let float = count as f64;
    float
}
