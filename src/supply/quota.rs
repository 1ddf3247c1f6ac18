//! How much may be stored here for each SAE and for each peer, and for how long.
//!
//! Checked before anything is made. The sums come from the store ([`Usage`]); the limits may change while the
//! daemon runs.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::DefaultDirectRateLimiter;
use governor::{Quota, RateLimiter};
use kme::{KmeId, SaeId};

use crate::metrics::LimitMeter;
use crate::store::{Excess, Owner, Reserved, Stored, Usage};

/// Lines in the log about full quotas in a minute; the metric counts all.
const WARNINGS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();

/// What may be stored for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQuota {
    /// The most that may be stored.
    pub most: Stored,
    /// Longest life of its keys.
    pub key_ttl_max: Duration,
}

/// All quotas of one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaTable {
    /// Of the listed SAEs of all sites: keys of which they are the master.
    pub saes: HashMap<SaeId, Stored>,
    /// Of each other SAE.
    pub other_saes: Stored,
    /// Of the configured peers: keys of which they are the source.
    pub peers: HashMap<KmeId, PeerQuota>,
}

/// Why nothing may be stored now. The text names who has how much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} may have no more {of_what} stored at KME {site} ({limit}); there is room again when some are retrieved or expire"
)]
pub struct QuotaFull {
    /// `SAE alice`, `KME site-b`.
    who: String,
    of_what: &'static str,
    /// The key of the configuration.
    limit: &'static str,
    site: KmeId,
}

/// The quotas in force. Share it in an `Arc`.
pub struct Quotas {
    local: KmeId,
    table: ArcSwap<QuotaTable>,
    usage: Arc<Usage>,
    meter: LimitMeter,
    warnings: DefaultDirectRateLimiter,
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Quotas {
    /// The quotas of `table` at the site `local`, whose store has `usage`.
    pub fn new(local: KmeId, table: QuotaTable, usage: Arc<Usage>, meter: LimitMeter) -> Arc<Self> {
        meter.show("sae", &["stored_keys", "stored_mib"]);
        meter.show("peer", &["stored_keys", "stored_mib", "tombstones"]);
        let warnings = RateLimiter::direct(Quota::per_minute(WARNINGS_PER_MINUTE));
        Arc::new(Self { local, table: ArcSwap::from_pointee(table), usage, meter, warnings })
    }

    /// Puts new quotas into force.
    pub fn set(&self, table: QuotaTable) {
        self.table.store(Arc::new(table));
    }

    /// What is stored for each source: this site and its peers.
    pub fn sources(&self) -> Vec<(KmeId, Stored)> {
        let table = self.table.load();
        let sources = std::iter::once(&self.local).chain(table.peers.keys());
        sources.map(|kme| (kme.clone(), self.usage.of(&Owner::Source(kme.clone())))).collect()
    }

    /// Longest life of keys from `source`; nothing from a KME that is no peer.
    pub(super) fn key_ttl_max(&self, source: &KmeId) -> Duration {
        self.table.load().peers.get(source).map(|quota| quota.key_ttl_max).unwrap_or_default()
    }

    /// Room for keys that this site makes for its SAE `master`.
    pub(super) fn own(&self, master: &SaeId, keys: usize, key_bytes: usize) -> Result<Reserved, QuotaFull> {
        let most = self.of_sae(master);
        let owners = [
            (Owner::Source(self.local.clone()), Stored::UNBOUNDED),
            (Owner::Master(self.local.clone(), master.clone()), most),
        ];
        let reserved = self.usage.reserve(owners, amount(keys, key_bytes));
        reserved.map_err(|(_, excess)| self.full_sae("sae", master, excess))
    }

    /// Room for keys that the peer `source` pushes for its SAE `master`.
    pub(super) fn of_peer(
        &self,
        source: &KmeId,
        master: &SaeId,
        keys: usize,
        key_bytes: usize,
    ) -> Result<Reserved, QuotaFull> {
        let owners = [
            (Owner::Source(source.clone()), self.most_of_peer(source)),
            (Owner::Master(source.clone(), master.clone()), self.of_sae(master)),
        ];
        self.usage.reserve(owners, amount(keys, key_bytes)).map_err(|(place, excess)| match place {
            0 => self.full_peer(source, excess),
            _ => self.full_sae("peer", master, excess),
        })
    }

    /// Room for a tombstone of `source`.
    pub(super) fn tombstone(&self, source: &KmeId) -> Result<Reserved, QuotaFull> {
        let Stored { tombstones, .. } = self.most_of_peer(source);
        let owner = (Owner::Source(source.clone()), Stored { tombstones, ..Stored::UNBOUNDED });
        let one = Stored { tombstones: 1, ..Stored::default() };
        self.usage.reserve([owner], one).map_err(|(_, excess)| self.full_peer(source, excess))
    }

    /// The most of an SAE. It has no tombstones.
    fn of_sae(&self, sae: &SaeId) -> Stored {
        let table = self.table.load();
        let most = table.saes.get(sae).copied().unwrap_or(table.other_saes);
        Stored { tombstones: u64::MAX, ..most }
    }

    fn most_of_peer(&self, source: &KmeId) -> Stored {
        self.table.load().peers.get(source).map(|quota| quota.most).unwrap_or_default()
    }

    fn full_sae(&self, listener: &'static str, sae: &SaeId, excess: Excess) -> QuotaFull {
        let is_listed = self.table.load().saes.contains_key(sae);
        self.full(listener, format!("SAE {sae}"), sae.as_str(), is_listed, excess)
    }

    fn full_peer(&self, kme: &KmeId, excess: Excess) -> QuotaFull {
        self.full("peer", format!("KME {kme}"), kme.as_str(), true, excess)
    }

    fn full(
        &self,
        listener: &'static str,
        who: String,
        name: &str,
        is_listed: bool,
        excess: Excess,
    ) -> QuotaFull {
        let (of_what, limit) = match excess {
            Excess::Keys => ("keys", "stored_keys"),
            Excess::Bytes => ("bytes of keys", "stored_mib"),
            Excess::Tombstones => ("tombstones", "tombstones"),
        };
        self.meter.note(listener, name, is_listed, limit);
        if self.warnings.check().is_ok() {
            tracing::warn!(
                listener,
                who,
                limit,
                "an SAE or a KME has reached a quota: this site stores no more for it now"
            );
        }
        QuotaFull { who, of_what, limit, site: self.local.clone() }
    }
}

fn amount(keys: usize, key_bytes: usize) -> Stored {
    Stored { keys: keys as u64, bytes: (keys as u64).saturating_mul(key_bytes as u64), tombstones: 0 }
}
