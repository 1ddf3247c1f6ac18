//! The health of a daemon, for `/readyz`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kme::{Clock, KmeId};
use mtls::TlsStore;
use tokio_util::sync::CancellationToken;

use super::supervise::{Listeners, Restarts};
use crate::http::admin::{Condition, Health, Part, Readiness};
use crate::peer::{BreakerState, PeerClient};
use crate::pool::{PoolServers, PoolVault, lock_report};
use crate::store::Store;
use crate::supply::Peers;

/// Longest wait for the store.
const STORE_WAIT_MAX: Duration = Duration::from_secs(2);
/// With less time left, a certificate degrades the daemon.
const CERTIFICATE_WARNING: Duration = Duration::from_hours(24 * 7);

/// What every daemon has.
pub(super) struct Common {
    pub(super) tls: Arc<TlsStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stopping: CancellationToken,
    pub(super) restarts: Restarts,
    pub(super) listeners: Listeners,
}

impl Common {
    fn parts(&self) -> Vec<Part> {
        let stopping = self.stopping.is_cancelled();
        let daemon = if stopping { failed("daemon", "stopping") } else { ok("daemon") };
        let restarts = self.restarts.count();
        let tasks = match restarts {
            0 => ok("tasks"),
            _ => degraded("tasks", format!("{restarts} restarts of background tasks; see the log")),
        };
        vec![daemon, tasks, self.certificate(), self.tls_files(), self.revocations(), memory()]
    }

    /// Lists that are due stay in force. Being without any is a choice, so no reason for an alarm.
    fn revocations(&self) -> Part {
        const NAME: &str = "revocation lists";
        let known = self.tls.revocations();
        let cas = known.without_list.join("; ");
        match known.due {
            _ if !known.has_lists => noted(NAME, "none configured: a certificate is good until it expires"),
            Some((due, ca)) if due <= self.clock.now() => degraded(
                NAME,
                format!("overdue since {due}: the list of CA {ca}. It stays in force; replace it"),
            ),
            _ if !cas.is_empty() => noted(NAME, format!("no list, as tls.crl_exempt allows: CA {cas}")),
            _ => ok(NAME),
        }
    }

    /// Files that changed and cannot be used, for example revocation lists that do not cover every trusted CA.
    fn tls_files(&self) -> Part {
        match self.tls.problem() {
            Some(problem) => degraded(
                "tls files",
                format!("changed files cannot be used, the old ones stay in force: {problem}"),
            ),
            None => ok("tls files"),
        }
    }

    fn certificate(&self) -> Part {
        let (now, end) = (self.clock.now(), self.tls.not_after());
        if end <= now {
            failed("certificate", format!("expired at {end}"))
        } else if end.since(now) < CERTIFICATE_WARNING {
            degraded("certificate", format!("expires at {end}"))
        } else {
            ok("certificate")
        }
    }
}

fn memory() -> Part {
    let report = lock_report();
    match report.unlocked_bytes {
        0 => ok("pool memory"),
        bytes => degraded("pool memory", format!("{bytes} bytes could not be locked; raise LimitMEMLOCK")),
    }
}

/// The health of a KME. Trouble elsewhere only degrades it: it still serves the keys it has.
pub(super) struct KmeHealth {
    pub(super) common: Common,
    pub(super) store: Arc<Store>,
    pub(super) peers: Arc<Peers>,
    pub(super) pool_servers: Arc<PoolServers>,
}

impl Health for KmeHealth {
    fn look(&self) -> BoxFuture<'_, Readiness> {
        Box::pin(async {
            let mut parts = self.common.parts();
            parts.push(match tokio::time::timeout(STORE_WAIT_MAX, self.store.ping()).await {
                Ok(Ok(())) => ok("store"),
                Ok(Err(error)) => failed("store", error.public_message()),
                Err(_) => failed("store", "does not answer"),
            });
            parts.extend(self.peers.iter().map(|peer| peer_part(peer)));
            parts.push(self.pool_servers_part());
            parts.push(match self.pool_servers.recent_extra_read() {
                None => ok("pool readers"),
                Some(alarm) => degraded("pool readers", alarm),
            });
            Readiness::of(parts)
        })
    }
}

impl KmeHealth {
    /// Degraded if one server cannot be used, even if there are enough others: an operator should know.
    fn pool_servers_part(&self) -> Part {
        let servers = &self.pool_servers;
        let mut troubles: Vec<String> = Vec::new();
        for (server, standing) in servers.standings() {
            troubles.extend(standing.trouble);
            let failed = standing.failed_at.into_iter();
            troubles.extend(failed.map(|(peer, _)| format!("KME {peer} cannot use pool server {server}")));
            if !standing.doubted_for.is_empty() {
                let peers: Vec<&str> = standing.doubted_for.iter().map(KmeId::as_str).collect();
                troubles.push(format!(
                    "pool server {server} counted reads of pools shared with {} that the other servers did not",
                    peers.join(", ")
                ));
            }
            if !standing.quarantined_for.is_empty() {
                let peers: Vec<&str> = standing.quarantined_for.iter().map(KmeId::as_str).collect();
                troubles.push(format!(
                    "pool server {server} is under quarantine for keys shared with {}: its pool differed \
                     between the sites",
                    peers.join(", ")
                ));
            }
        }
        let needed = servers.pools_min();
        let alone = std::iter::once((BTreeSet::new(), "no new pool sets".to_owned()));
        let shared = self.peers.iter().map(|peer| {
            (BTreeSet::from([peer.kme().clone()]), format!("no new pool sets with {}", peer.kme()))
        });
        for (group, what) in alone.chain(shared) {
            let usable = servers.usable_for(&group);
            if usable < needed {
                troubles.push(format!("{what}: {usable} pool servers can be used, pools_min = {needed}"));
                if group.is_empty() {
                    break;
                }
            }
        }
        for (peer, pools) in servers.demands() {
            troubles.push(format!(
                "KME {peer} accepts only sets of {pools} or more pools: raise pools_per_set, or list more pool servers"
            ));
        }
        if troubles.is_empty() { ok("pool servers") } else { degraded("pool servers", troubles.join("; ")) }
    }
}

/// A peer is degraded even if only one of its replicas does not answer.
fn peer_part(peer: &PeerClient) -> Part {
    let name = format!("peer {}", peer.kme());
    let silent: Vec<&str> =
        peer.addresses().filter_map(|(url, state)| (state != BreakerState::Closed).then_some(url)).collect();
    if silent.is_empty() {
        ok(name)
    } else if peer.breaker() == BreakerState::Closed {
        degraded(name, format!("no answer at {}", silent.join(", ")))
    } else {
        degraded(name, "does not answer")
    }
}

/// The health of a pool server.
pub(super) struct PoolHealth {
    pub(super) common: Common,
    pub(super) vault: Arc<PoolVault>,
}

impl Health for PoolHealth {
    fn look(&self) -> BoxFuture<'_, Readiness> {
        Box::pin(async {
            let mut parts = self.common.parts();
            let mut vault = ok("vault");
            vault.message =
                Some(format!("{} pools, {} bytes", self.vault.pool_count(), self.vault.used_bytes()));
            parts.push(vault);
            Readiness::of(parts)
        })
    }
}

fn ok(name: impl Into<String>) -> Part {
    Part { name: name.into(), condition: Condition::Ok, message: None }
}

fn noted(name: impl Into<String>, message: impl Into<String>) -> Part {
    Part { message: Some(message.into()), ..ok(name) }
}

fn degraded(name: impl Into<String>, message: impl Into<String>) -> Part {
    Part { name: name.into(), condition: Condition::Degraded, message: Some(message.into()) }
}

fn failed(name: impl Into<String>, message: impl Into<String>) -> Part {
    Part { name: name.into(), condition: Condition::Failed, message: Some(message.into()) }
}
