//! Counters, gauges and histograms for operators, in the text form of OpenMetrics.
//!
//! Each daemon has its own registry, so several in one process do not mix. Rooms register their families here and keep
//! the handles that requests need, so counting is an atomic addition. The values of labels are bounded by the
//! configuration or the program: never an ID of a key, never a name that only a client chose, never a path.

mod histogram;
mod limited;
mod reading;

use std::borrow::Cow;
use std::fmt;

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::registry::Registry;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

pub use self::histogram::{Counts, Histogram, Seconds};
pub use self::limited::LimitMeter;
pub use self::reading::Reading;

/// Content type of what [`encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The labels of a series: names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Vec<(&'static str, Cow<'static, str>)>);

impl Labels {
    /// Labels in this order. All series of a family have the same names.
    pub fn new<V: Into<Cow<'static, str>>>(labels: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        Self(labels.into_iter().map(|(name, value)| (name, value.into())).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a label.
    pub fn and(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.0.push((name, value.into()));
        self
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// Counters by labels.
pub type Counters = Family<Labels, Counter>;
/// Histograms of durations by labels.
pub type Timings = Family<Labels, Histogram<Seconds>>;

/// An empty registry.
pub fn registry() -> Registry {
    Registry::default()
}

/// The counter with `labels`. Shown from now on, as 0 until something happens.
pub fn counter(family: &Counters, labels: Labels) -> Counter {
    family.get_or_create_owned(&labels)
}

/// The histogram with `labels`, likewise.
pub fn timing(family: &Timings, labels: Labels) -> Histogram<Seconds> {
    family.get_or_create_owned(&labels)
}

/// Everything registered, as text.
///
/// # Errors
/// None that a string can cause.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_are_escaped_and_families_show_their_series() {
        let mut registry = registry();
        let family = Counters::default();
        registry.register("dqkd_calls", "Calls", family.clone());
        counter(&family, Labels::new([("peer", "a\"b\\c\nd")])).inc_by(3);
        let text = encode(&registry).unwrap();
        assert!(text.contains(r#"dqkd_calls_total{peer="a\"b\\c\nd"} 3"#), "{text}");
        assert!(text.contains("# TYPE dqkd_calls counter\n") && text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn two_registries_share_nothing() {
        let (mut one, mut other) = (registry(), registry());
        let (first, second) = (Counter::<u64>::default(), Counter::<u64>::default());
        one.register("x", "x", first.clone());
        other.register("x", "x", second);
        first.inc();
        assert!(encode(&one).unwrap().contains("x_total 1"));
        assert!(encode(&other).unwrap().contains("x_total 0"));
    }
}
