//! Counts what limits refused, by the identity that reached them.

use super::{Counter, Counters, Labels, Registry, counter};

/// Stands for every identity that the configuration does not list, so that nobody can add series.
const UNLISTED: &str = "(unlisted)";

/// Refusals of all limits of one daemon.
#[derive(Clone, Debug, Default)]
pub struct LimitMeter(Counters);

impl LimitMeter {
    /// A meter that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let meter = Self::default();
        let help = "Refusals because an identity had reached a limit of its own";
        registry.register("dqkd_limited", help, meter.0.clone());
        meter
    }

    /// Shows limits of `listener` from now on, as 0 until somebody reaches them.
    pub fn show(&self, listener: &'static str, limits: &[&'static str]) {
        for limit in limits {
            self.counter(listener, UNLISTED, limit);
        }
    }

    /// Counts one refusal. `identity` is named only if it `is_listed`.
    pub fn note(&self, listener: &'static str, identity: &str, is_listed: bool, limit: &'static str) {
        self.counter(listener, if is_listed { identity } else { UNLISTED }, limit).inc();
    }

    fn counter(&self, listener: &'static str, identity: &str, limit: &'static str) -> Counter {
        let labels = Labels::new([("listener", listener)]).and("identity", identity.to_owned());
        counter(&self.0, labels.and("limit", limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{encode, registry};

    #[test]
    fn only_listed_identities_have_series_of_their_own() {
        let mut registry = registry();
        let meter = LimitMeter::register(&mut registry);
        meter.note("sae", "alice", true, "requests_per_second");
        for stranger in ["x", "y", "z"] {
            meter.note("sae", stranger, false, "requests_per_second");
        }
        let text = encode(&registry).unwrap();
        let line = |identity: &str, count: u32| {
            format!(
                "dqkd_limited_total{{listener=\"sae\",identity=\"{identity}\",limit=\"requests_per_second\"}} {count}\n"
            )
        };
        assert!(text.contains(&line("alice", 1)) && text.contains(&line("(unlisted)", 3)), "{text}");
        assert!(!text.contains("\"x\""), "{text}");
    }
}
