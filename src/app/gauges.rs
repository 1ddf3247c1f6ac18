//! The gauges of `/metrics`, read from the other rooms at each request.

use std::collections::BTreeSet;
use std::sync::Arc;

use kme::{KmeId, PoolServerId, Timestamp};
use mtls::{Cut, ListenerCounts, Refusal};

use super::health::Common;
use super::supervise::{Counted, Listeners};
use crate::metrics::{Labels, Reading, Registry};
use crate::peer::BreakerState;
use crate::pool::{PoolServers, PoolVault, RecipientSets, ServerStanding, SourceSets, lock_report};
use crate::store::Stored;
use crate::supply::{Peers, Quotas, Supply};

/// Where the pool gauges of a KME get their values.
pub(super) struct KmePools {
    pub(super) servers: Arc<PoolServers>,
    pub(super) own: Arc<SourceSets>,
    pub(super) of_peers: Arc<RecipientSets>,
    pub(super) peers: Vec<KmeId>,
}

/// The gauges of every daemon. `kind` is `kme` or `pool`.
pub(super) fn of_daemon(registry: &mut Registry, kind: &'static str, id: String, common: &Common) {
    let build = Labels::new([("version", env!("CARGO_PKG_VERSION")), ("kind", kind)]).and("id", id);
    gauges(registry, "dqkd_build_info", "1; what runs here", move || vec![(build.clone(), 1)]);
    let started = common.clock.now();
    gauge(registry, "process_start_time_seconds", "When the daemon started, since 1970", move || {
        Some(seconds(started))
    });
    gauge(registry, "process_resident_memory_bytes", "Memory in use", resident_bytes);
    gauge(registry, "process_open_fds", "Open files and connections", open_files);
    let restarts = common.restarts.clone();
    let help = "Background tasks that ended and were started again";
    let read = move || vec![(Labels::default(), restarts.count())];
    registry.register("dqkd_task_restarts", help, Reading::counter(read));
    let tls = Arc::clone(&common.tls);
    gauge(
        registry,
        "dqkd_certificate_expiry_timestamp_seconds",
        "When this daemon's certificate expires",
        move || Some(seconds(tls.not_after())),
    );
    let tls = Arc::clone(&common.tls);
    let help = "When the first revocation list should be replaced; absent without one";
    gauge(registry, "dqkd_crl_next_update_timestamp_seconds", help, move || {
        tls.crl_next_update().map(seconds)
    });
    of_listeners(registry, &common.listeners);
    gauges(registry, "dqkd_pool_memory_bytes", "Memory of pools, by whether it could be locked", || {
        let report = lock_report();
        vec![one("locked", "yes", report.locked_bytes), one("locked", "no", report.unlocked_bytes)]
    });
}

/// What the listeners count.
fn of_listeners(registry: &mut Registry, listeners: &Listeners) {
    let now = |read: fn(&ListenerCounts) -> usize| {
        let listeners = listeners.clone();
        move || {
            let all = listeners.all().into_iter();
            all.map(|(name, counts)| one("listener", name, read(&counts) as u64)).collect()
        }
    };
    gauges(registry, "dqkd_connections", "Open connections", now(ListenerCounts::open));
    let help = "Connections whose handshake is not finished";
    gauges(registry, "dqkd_unfinished_handshakes", help, now(ListenerCounts::handshakes));
    let help = "Bytes of answers that clients have not read";
    gauges(registry, "dqkd_unsent_bytes", help, now(ListenerCounts::unsent_bytes));
    let read = listeners.clone();
    let refused = move || {
        let of_one = |(name, counts): Counted| {
            Refusal::ALL.map(|reason| {
                (Labels::new([("listener", name), ("reason", reason.name())]), counts.refused(reason))
            })
        };
        read.all().into_iter().flat_map(of_one).collect()
    };
    let help = "Clients that got no connection";
    registry.register("dqkd_refused_connections", help, Reading::counter(refused));
    let read = listeners.clone();
    let cut = move || {
        let of_one = |(name, counts): Counted| {
            Cut::ALL.map(|reason| {
                (Labels::new([("listener", name), ("reason", reason.name())]), counts.cut(reason))
            })
        };
        read.all().into_iter().flat_map(of_one).collect()
    };
    let help = "Connections that were closed without waiting for the client";
    registry.register("dqkd_cut_connections", help, Reading::counter(cut));
}

/// The reserves of keys.
pub(super) fn of_reserve(registry: &mut Registry, supply: &Arc<Supply>) {
    let read = Arc::clone(supply);
    gauge(registry, "dqkd_reserve_pairs", "Pairs that keys are kept ready for", move || {
        Some(read.levels().pairs)
    });
    let read = Arc::clone(supply);
    gauges(
        registry,
        "dqkd_reserve_keys",
        "Ready keys: leased in memory, or in the store as last seen",
        move || {
            let levels = read.levels();
            vec![one("place", "leased", levels.leased), one("place", "stored", levels.stored)]
        },
    );
    let read = Arc::clone(supply);
    gauge(registry, "dqkd_reserve_waited_for_keys", "Keys that callers wait for", move || {
        Some(read.levels().waited_for)
    });
}

/// What is stored for each source.
pub(super) fn of_quotas(registry: &mut Registry, quotas: &Arc<Quotas>) {
    let one = |part: fn(&Stored) -> u64| {
        let quotas = Arc::clone(quotas);
        move || {
            let of =
                |(kme, stored): (KmeId, Stored)| (Labels::new([("source", kme.to_string())]), part(&stored));
            quotas.sources().into_iter().map(of).collect()
        }
    };
    gauges(
        registry,
        "dqkd_stored_keys",
        "Keys stored here, by the KME that made them",
        one(|stored| stored.keys),
    );
    gauges(registry, "dqkd_stored_key_bytes", "Bytes of these keys", one(|stored| stored.bytes));
    let help = "Batches that were voided before they arrived";
    gauges(registry, "dqkd_tombstones", help, one(|stored| stored.tombstones));
}

/// The circuit breakers.
pub(super) fn of_peers(registry: &mut Registry, peers: &Arc<Peers>) {
    let peers = Arc::clone(peers);
    let help = "1 for the state that the circuit breaker of a peer's address is in";
    gauges(registry, "dqkd_peer_breaker_state", help, move || {
        let states = |(kme, url, is): (&KmeId, &str, BreakerState)| {
            [(BreakerState::Closed, "closed"), (BreakerState::Open, "open"), (BreakerState::Trying, "trying")]
                .map(|(state, name)| {
                    let labels = Labels::new([("peer", kme.to_string()), ("url", url.to_owned())]);
                    let labels = labels.and("state", name);
                    (labels, u64::from(state == is))
                })
        };
        let addresses =
            peers.iter().flat_map(|peer| peer.addresses().map(move |(url, state)| (peer.kme(), url, state)));
        addresses.flat_map(states).collect()
    });
}

/// Pool sets and the servers they come from.
pub(super) fn of_pools(registry: &mut Registry, pools: KmePools) {
    let KmePools { servers, own, of_peers, peers } = pools;
    let answering = Arc::clone(&servers);
    gauge(
        registry,
        "dqkd_pool_servers_available",
        "Pool servers that are not paused after a failure",
        move || {
            let standings = answering.standings();
            Some(standings.iter().filter(|(_, standing)| standing.trouble.is_none()).count() as u64)
        },
    );
    let read = Arc::clone(&servers);
    let help = "Pool servers that a set of pools_min pools lacks: for the worst peer, or for this site alone";
    gauge(registry, "dqkd_pools_missing", help, move || {
        let groups = peers.iter().map(|peer| BTreeSet::from([peer.clone()])).chain([BTreeSet::new()]);
        let missing = groups.map(|group| read.pools_min().saturating_sub(read.usable_for(&group)));
        missing.max().map(|missing| missing as u64)
    });
    let read = Arc::clone(&servers);
    let help =
        "1 while a pool server is under quarantine for a peer: its pool differed between the two sites";
    gauges(registry, "dqkd_pool_server_quarantined", help, move || {
        let of = |(server, standing): (PoolServerId, ServerStanding)| {
            let one = move |peer: KmeId| {
                (Labels::new([("server", server.to_string()), ("peer", peer.to_string())]), 1)
            };
            standing.quarantined_for.into_iter().map(one)
        };
        read.standings().into_iter().flat_map(of).collect()
    });
    let help = "Unexpected reads of this site's pools; each retired a set";
    let read = move || {
        let of =
            |(server, count): (PoolServerId, u64)| (Labels::new([("server", server.to_string())]), count);
        servers.extra_reads().into_iter().map(of).collect()
    };
    registry.register("dqkd_pool_extra_reads", help, Reading::counter(read));
    let (own_sets, peers_sets) = (Arc::clone(&own), Arc::clone(&of_peers));
    gauges(registry, "dqkd_pool_sets", "Pool sets held, by who made them", move || {
        let (own, peers) = (own_sets.count() as u64, peers_sets.count() as u64);
        vec![one("maker", "own", own), one("maker", "peers", peers)]
    });
    gauges(registry, "dqkd_pool_set_bytes", "Memory of pool sets, by who made them", move || {
        vec![one("maker", "own", own.used_bytes()), one("maker", "peers", of_peers.used_bytes())]
    });
}

/// The vault of a pool server.
pub(super) fn of_vault(registry: &mut Registry, vault: &Arc<PoolVault>) {
    let read = Arc::clone(vault);
    gauge(registry, "dqkd_vault_pools", "Pools held", move || Some(read.pool_count() as u64));
    let read = Arc::clone(vault);
    let made = move || vec![(Labels::default(), read.made_count())];
    registry.register("dqkd_vault_pools_made", "Pools made", Reading::counter(made));
    let read = Arc::clone(vault);
    gauge(registry, "dqkd_vault_downloads", "Downloads that have not ended", move || {
        Some(read.open_downloads() as u64)
    });
    let read = Arc::clone(vault);
    let cut = move || vec![(Labels::default(), read.cut_downloads())];
    registry.register(
        "dqkd_vault_downloads_cut",
        "Downloads that were cut because they took too long",
        Reading::counter(cut),
    );
    let read = Arc::clone(vault);
    gauge(registry, "dqkd_vault_bytes", "Memory of pools held or being made", move || {
        Some(read.used_bytes())
    });
}

fn gauges(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> Vec<(Labels, u64)> + Send + Sync + 'static,
) {
    registry.register(name, help.to_owned(), Reading::gauge(read));
}

/// One series without labels; no series while its value is unknown.
fn gauge(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> Option<u64> + Send + Sync + 'static,
) {
    gauges(registry, name, help, move || {
        read().map(|value| (Labels::default(), value)).into_iter().collect()
    });
}

fn one(name: &'static str, value: &'static str, count: u64) -> (Labels, u64) {
    (Labels::new([(name, value)]), count)
}

fn seconds(moment: Timestamp) -> u64 {
    u64::try_from(moment.as_ms() / 1000).unwrap_or(0)
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

fn open_files() -> Option<u64> {
    // Without the one that this call opens.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}
