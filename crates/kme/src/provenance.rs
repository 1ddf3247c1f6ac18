//! How a key was made and how long it lives, and what callers demand of both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Key, Timestamp};

/// How a key was made. Known at the site that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceGrade {
    /// What the pools were filled from, as the pool servers name it, for example `os`.
    pub entropy_sources: BTreeSet<String>,
    /// Number of pools that the key was extracted from, each on its own server.
    pub pools: usize,
    /// Whether every connection that carried metadata of the key had a hybrid post-quantum key exchange. Also
    /// true if no metadata left the site.
    pub hybrid_tls: bool,
}

/// What every key of one batch has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// How it was made.
    pub grade: SourceGrade,
    /// From this moment on, no site returns it.
    pub expires_at: Timestamp,
}

/// A key that is handed out for the first time.
#[derive(Debug)]
pub struct FreshKey {
    /// The key.
    pub key: Key,
    /// Where it comes from.
    pub provenance: Arc<Provenance>,
}

/// What a caller demands of the keys it gets. The default demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// Fewest pools.
    pub min_pools: Option<u64>,
    /// The entropy source that every pool must have.
    pub entropy_source: Option<String>,
    /// Hybrid key exchange for all metadata.
    pub hybrid_tls: bool,
    /// Shortest remaining life.
    pub min_lifetime: Option<Duration>,
}

impl Demands {
    /// Whether keys of `provenance` fulfil the demands at `now`.
    pub fn met_by(&self, provenance: &Provenance, now: Timestamp) -> bool {
        let grade = &provenance.grade;
        self.met_by_pools(grade.pools, &grade.entropy_sources)
            && (grade.hybrid_tls || !self.hybrid_tls)
            && self.met_by_life(provenance.expires_at.since(now))
    }

    /// Whether keys from `pools` pools with `entropy_sources` fulfil the demands.
    pub fn met_by_pools(&self, pools: usize, entropy_sources: &BTreeSet<String>) -> bool {
        self.min_pools.is_none_or(|min| u64::try_from(pools).is_ok_and(|pools| pools >= min))
            && self.entropy_source.as_ref().is_none_or(|only| entropy_sources.iter().all(|name| name == only))
    }

    /// Whether keys with `life` left fulfil the demands.
    pub fn met_by_life(&self, life: Duration) -> bool {
        self.min_lifetime.is_none_or(|min| life >= min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_demand_is_met_or_not_on_its_own() {
        let now = Timestamp::from_ms(0);
        let provenance = Provenance {
            grade: SourceGrade { entropy_sources: ["os".to_owned()].into(), pools: 3, hybrid_tls: false },
            expires_at: now.plus(Duration::from_mins(1)),
        };
        let met = |demands: Demands| demands.met_by(&provenance, now);
        assert!(met(Demands::default()));
        assert!(met(Demands { min_pools: Some(3), ..Demands::default() }));
        assert!(!met(Demands { min_pools: Some(4), ..Demands::default() }));
        assert!(met(Demands { entropy_source: Some("os".into()), ..Demands::default() }));
        assert!(!met(Demands { entropy_source: Some("qrng".into()), ..Demands::default() }));
        assert!(!met(Demands { hybrid_tls: true, ..Demands::default() }));
        assert!(met(Demands { min_lifetime: Some(Duration::from_mins(1)), ..Demands::default() }));
        assert!(!met(Demands { min_lifetime: Some(Duration::from_secs(61)), ..Demands::default() }));
    }
}
