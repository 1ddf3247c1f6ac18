//! One random pool server from its settings to its running listeners.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kme::{Clock, OsRandom, SystemClock};
use mtls::identity::Kind;
use mtls::{ListenerTls, Versions};
use tokio::time::interval;

use super::gauges;
use super::health::{Common, PoolHealth};
use super::identity;
use super::reload::{self, Reload};
use super::supervise::{Daemon, Supervisor, bind};
use super::wiring;
use crate::config::PoolServerConfig;
use crate::http;
use crate::http::RequestMeters;
use crate::http::admin::{AdminParts, ReadinessMeter};
use crate::http::limits::Clients;
use crate::metrics::{self, LimitMeter};
use crate::pool::PoolVault;
use crate::self_test;

/// How often expired pools are erased.
const TICK: Duration = Duration::from_secs(1);

/// Starts the pool server of `config`.
///
/// # Errors
/// Why it cannot serve, for an operator.
pub async fn start_pool_server(config: &PoolServerConfig) -> anyhow::Result<Daemon> {
    self_test::run_quick().context("the self-test failed: do not use this program")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let tls = identity::tls_of_pool_server(config)?;
    let vault = Arc::new(PoolVault::new(wiring::vault(config), Arc::clone(&clock), Arc::new(OsRandom)));
    let mut supervisor = Supervisor::new(&config.id);
    let pool = bind(&config.id, "pool", config.listen.pool).await?;
    let admin = bind(&config.id, "admin", config.listen.admin).await?;
    let grace = config.limits.shutdown_grace;
    let limits = wiring::listener_limits(config.limits.max_connections, config.limits.handshakes, grace);
    let mutual = |accepts, versions| ListenerTls::Mutual {
        store: Arc::clone(&tls),
        rules: wiring::strict_identity_rules(&config.trust_domain),
        accepts,
        versions,
    };
    let mut registry = metrics::registry();
    let requests = RequestMeters::register(&mut registry);
    let edge = wiring::pool_edge_limits(config);
    let limited = LimitMeter::register(&mut registry);
    let clients = Clients::new("pool", wiring::pool_limits(config), 1, limited);
    let work = supervisor.work.clone();
    if config.kmes.is_none() {
        tracing::warn!(
            pool_server = %config.id,
            "every KME of the trust chain may make and read pools here; list yours in [pool] kmes"
        );
    }
    let creations = config.creations_per_minute;
    let router = http::pool::router(Arc::clone(&vault), clients, edge, creations, work, &requests);
    supervisor.listener("pool", pool, mutual(&[Kind::Kme], Versions::Latest), router, limits);

    let is_plain = config.listen.admin_is_loopback();
    let common = Common {
        tls: Arc::clone(&tls),
        clock,
        stopping: supervisor.stopping.clone(),
        restarts: supervisor.restarts.clone(),
        listeners: supervisor.listeners.clone(),
    };
    gauges::of_daemon(&mut registry, "pool", config.id.to_string(), &common);
    gauges::of_vault(&mut registry, &vault);
    let parts = AdminParts {
        health: Arc::new(PoolHealth { common, vault: Arc::clone(&vault) }),
        readiness: ReadinessMeter::register(&mut registry),
        registry,
        description: None,
        operators_only: !is_plain,
    };
    let router = http::admin::router(parts, supervisor.work.clone(), &requests);
    let admin_tls =
        if is_plain { ListenerTls::Plain } else { mutual(&[Kind::Operator], Versions::Compatible) };
    supervisor.admin(admin, admin_tls, router, limits);

    supervisor.background("sweep of pools", move || sweep(Arc::clone(&vault)));
    let files = Arc::new(Reload { tls: Arc::clone(&tls), directory: None });
    supervisor.background("reload of files", move || reload::watch(Arc::clone(&files)));
    tracing::info!(pool_server = %config.id, version = env!("CARGO_PKG_VERSION"), "the pool server serves");
    Ok(supervisor.run(Duration::ZERO, grace, async {}))
}

async fn sweep(vault: Arc<PoolVault>) {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        vault.sweep();
    }
}
