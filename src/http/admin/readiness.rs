//! Readiness in `/metrics`.

use super::{Condition, Readiness};
use crate::metrics::{Family, Gauge, Labels, Registry};

/// All conditions of a part, with their names.
const CONDITIONS: [(Condition, &str); 3] =
    [(Condition::Ok, "ok"), (Condition::Degraded, "degraded"), (Condition::Failed, "failed")];

/// Whether requests should be sent here, and the condition of each part.
#[derive(Clone, Debug, Default)]
pub struct ReadinessMeter {
    ready: Gauge,
    parts: Family<Labels, Gauge>,
}

impl ReadinessMeter {
    /// A meter that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let meter = Self::default();
        registry.register("dqkd_ready", "1: requests should be sent here", meter.ready.clone());
        registry.register(
            "dqkd_part_condition",
            "1 for the condition that a part of the daemon is in",
            meter.parts.clone(),
        );
        meter
    }

    /// Records the daemon's readiness.
    pub(super) fn note(&self, readiness: &Readiness) {
        self.ready.set(i64::from(readiness.ready));
        for part in &readiness.parts {
            for (condition, name) in CONDITIONS {
                let labels = Labels::new([("part", part.name.clone())]).and("condition", name);
                self.parts.get_or_create(&labels).set(i64::from(part.condition == condition));
            }
        }
    }
}
