//! A histogram that many cores add to at once, without a lock.
//!
//! Each thread adds to one of a few shards. A scrape sums them up; its sum and its buckets may differ by what is added
//! meanwhile.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Enough that two cores seldom use the same one.
const SHARDS: usize = 8;
/// Buckets of each histogram, without the last one, which has no upper bound.
const BOUNDS: usize = 16;

/// The unit and the buckets of a histogram.
pub trait Scale: fmt::Debug + Send + Sync + 'static {
    /// Upper bounds of the buckets, in the shown unit.
    const BOUNDS: [f64; BOUNDS];
    /// Observed units in one shown unit.
    const UNITS: f64;
}

/// Durations from 100 us to 10 s, observed in nanoseconds, shown in seconds.
#[derive(Debug)]
pub struct Seconds;

impl Scale for Seconds {
    const BOUNDS: [f64; BOUNDS] =
        [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    const UNITS: f64 = 1e9;
}

/// Numbers from 1 to 4096.
#[derive(Debug)]
pub struct Counts;

impl Scale for Counts {
    const BOUNDS: [f64; BOUNDS] =
        [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];
    const UNITS: f64 = 1.0;
}

/// Has its own cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    buckets: [AtomicU64; BOUNDS + 1],
    sum: AtomicU64,
}

/// A histogram. Clones share their values.
#[derive(Debug)]
pub struct Histogram<S> {
    shards: Arc<[Shard; SHARDS]>,
    scale: PhantomData<S>,
}

impl<S> Clone for Histogram<S> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), scale: PhantomData }
    }
}

impl<S> Default for Histogram<S> {
    fn default() -> Self {
        Self { shards: Arc::default(), scale: PhantomData }
    }
}

/// The shard of this thread. New threads get the shards in order.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

impl<S: Scale> Histogram<S> {
    fn add(&self, units: u64) {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are enough to choose a bucket")]
        let shown = units as f64 / S::UNITS;
        let bucket = S::BOUNDS.partition_point(|bound| *bound < shown);
        let Some(shard) = self.shards.get(shard_of_thread()) else { return };
        if let Some(count) = shard.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        shard.sum.fetch_add(units, Ordering::Relaxed);
    }

    fn encode_to(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut counts = [0_u64; BOUNDS + 1];
        let mut sum = 0_u64;
        for shard in self.shards.iter() {
            for (count, bucket) in counts.iter_mut().zip(&shard.buckets) {
                *count = count.wrapping_add(bucket.load(Ordering::Relaxed));
            }
            sum = sum.wrapping_add(shard.sum.load(Ordering::Relaxed));
        }
        let bounds = S::BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        #[expect(clippy::cast_precision_loss, reason = "the format has no more precision")]
        let shown = sum as f64 / S::UNITS;
        encoder.encode_histogram::<NoLabelSet>(shown, counts.iter().sum(), &buckets, None)
    }
}

impl Histogram<Seconds> {
    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        self.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Histogram<Counts> {
    /// Adds one number.
    pub fn observe(&self, count: usize) {
        self.add(count as u64);
    }
}

impl<S: Scale> EncodeMetric for Histogram<S> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode_to(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl<S> TypedMetric for Histogram<S> {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{encode, registry};

    fn shown<S: Scale>(histogram: &Histogram<S>) -> String {
        let mut registry = registry();
        registry.register("h", "h", histogram.clone());
        encode(&registry).unwrap()
    }

    #[test]
    fn bounds_rise_and_a_value_at_a_bound_is_in_its_bucket() {
        assert!(Seconds::BOUNDS.is_sorted_by(|a, b| a < b) && Counts::BOUNDS.is_sorted_by(|a, b| a < b));
        let histogram = Histogram::<Counts>::default();
        histogram.observe(1);
        histogram.observe(2);
        histogram.observe(4097);
        let text = shown(&histogram);
        for line in ["h_sum 4100.0", "h_count 3", "le=\"1.0\"} 1", "le=\"2.0\"} 2", "le=\"4096.0\"} 2"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains("le=\"+Inf\"} 3"), "{text}");
    }

    #[test]
    fn what_many_threads_observe_is_all_there() {
        let histogram = Histogram::<Seconds>::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(Duration::from_millis(1))));
            }
        });
        let text = shown(&histogram);
        assert!(text.contains("h_count 20000") && text.contains("h_sum 20.0"), "{text}");
    }
}
