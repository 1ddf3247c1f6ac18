//! Metrics that are read from the program when they are scraped.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Labels;

/// Series whose values a function returns.
pub struct Reading<F> {
    read: F,
    metric_type: MetricType,
}

impl<F: Fn() -> Vec<(Labels, u64)> + Send + Sync + 'static> Reading<F> {
    /// A gauge: rises and falls.
    pub fn gauge(read: F) -> Self {
        Self { read, metric_type: MetricType::Gauge }
    }

    /// A counter: only rises.
    pub fn counter(read: F) -> Self {
        Self { read, metric_type: MetricType::Counter }
    }
}

impl<F> fmt::Debug for Reading<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

impl<F: Fn() -> Vec<(Labels, u64)> + Send + Sync + 'static> EncodeMetric for Reading<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in (self.read)() {
            if labels.is_empty() {
                one(&mut encoder, self.metric_type, value)?;
            } else {
                one(&mut encoder.encode_family(&labels)?, self.metric_type, value)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.metric_type
    }
}

fn one(encoder: &mut MetricEncoder<'_>, metric_type: MetricType, value: u64) -> fmt::Result {
    match metric_type {
        MetricType::Counter => encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{encode, registry};

    #[test]
    fn each_scrape_reads_anew() {
        let scrapes = std::sync::atomic::AtomicU64::new(0);
        let mut registry = registry();
        let read = move || {
            let value = scrapes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            vec![(Labels::new([("part", "store")]), value)]
        };
        registry.register("g", "g", Reading::gauge(read));
        registry.register("c", "c", Reading::counter(|| vec![(Labels::default(), 7)]));
        assert!(encode(&registry).unwrap().contains("g{part=\"store\"} 0\n"));
        let text = encode(&registry).unwrap();
        assert!(text.contains("g{part=\"store\"} 1\n") && text.contains("c_total 7\n"), "{text}");
    }
}
