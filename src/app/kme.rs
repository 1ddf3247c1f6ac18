//! One KME from its settings to its running listeners.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use kme::{Backoff, Clock, Directory, OsRandom, Random, SystemClock};
use mtls::identity::Kind;
use mtls::{ExpectedServer, HttpVersion, HttpsClient, ListenerTls, TlsStore, Versions};
use parking_lot::Mutex;
use tokio::time::{Instant, interval, sleep};

use super::gauges::{self, KmePools};
use super::health::{Common, KmeHealth};
use super::identity;
use super::reload::{self, DirectoryReload, Origin, Reload};
use super::supervise::{Daemon, Supervisor, bind};
use super::wiring;
use crate::config::{BaseUrl, KmeConfig, LimitsConfig};
use crate::delivery::{Delivery, KeySource};
use crate::http;
use crate::http::RequestMeters;
use crate::http::admin::{AdminParts, ReadinessMeter};
use crate::http::limits::Clients;
use crate::metrics::{self, LimitMeter, Registry};
use crate::peer::{PeerClient, PeerClientSettings, PeerMeters};
use crate::pool::{PoolClient, PoolServers, RecipientSets, SourceSets};
use crate::self_test;
use crate::store::{Store, StoreSettings};
use crate::supply::{
    Intake, KEYS_PER_PUSH_MAX, PeerAnnouncer, Peers, Quotas, Supply, SupplyMeter, SupplyParts,
};

/// Most calls to one peer at once.
const PEER_CALLS_MAX: usize = 64;
/// How often expired pool sets are dropped.
const TICK: Duration = Duration::from_secs(1);
/// How often expired keys are erased.
const STORE_SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Pause after a failed sweep.
const STORE_SWEEP_AGAIN: Duration = Duration::from_secs(10);
/// How many batches one transaction of the sweeper erases; other jobs wait for it. Doubles with each second of a
/// sweep, up to [`STORE_SWEEP_ROWS_MAX`].
const STORE_SWEEP_ROWS: u32 = 32;
const STORE_SWEEP_ROWS_MAX: u32 = 1024;
/// Pause between two counts of what is stored, and at least so many times as long as a count kept the
/// database busy.
const COUNT_EVERY: Duration = Duration::from_secs(2);
const COUNT_PAUSE: u32 = 32;
/// How often a peer that answers is asked for its state.
const WATCH_EVERY: Duration = Duration::from_secs(10);
/// Pauses while a peer answers but no pool set can be made for it.
const WATCH_AGAIN: Backoff = Backoff::new(Duration::from_secs(2), WATCH_EVERY);
/// How long a stop waits at most for pool servers to erase this site's pools.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Starts the KME of `config`. With an `origin`, its SAE directory is read again when the file changes.
///
/// # Errors
/// Why it cannot serve, for an operator.
pub async fn start_kme(config: &KmeConfig, origin: Option<Origin>) -> anyhow::Result<Daemon> {
    self_test::run_quick().context("the self-test failed: do not use this program")?;
    let mut supervisor = Supervisor::new(&config.id);
    let mut registry = metrics::registry();
    let rooms = Rooms::open(config, &supervisor, &mut registry).await?;
    let saes = match rooms.listen(config, &mut supervisor, registry).await {
        Ok(saes) => saes,
        Err(error) => {
            rooms.store.close().await;
            return Err(error);
        }
    };
    rooms.start_background(config, origin, saes, &supervisor);
    tracing::info!(kme = %config.id, version = env!("CARGO_PKG_VERSION"), "the KME serves");
    let (store, sets, supply) = (rooms.store, rooms.source_sets, rooms.supply);
    let grace = config.limits.shutdown_grace;
    Ok(supervisor.run(config.limits.drain_delay, grace, async move {
        // Pools expire anyway; this erases them sooner.
        let _ = tokio::time::timeout(grace.min(RELEASE_WAIT_MAX), sets.close()).await;
        supply.close().await;
        store.close().await;
    }))
}

/// The rooms of one KME.
struct Rooms {
    clock: Arc<dyn Clock>,
    tls: Arc<TlsStore>,
    store: Arc<Store>,
    quotas: Arc<Quotas>,
    limited: LimitMeter,
    directory: Arc<ArcSwap<Directory>>,
    peers: Arc<Peers>,
    pool_servers: Arc<PoolServers>,
    source_sets: Arc<SourceSets>,
    intake: Arc<Intake>,
    supply: Arc<Supply>,
    delivery: Arc<Delivery>,
}

impl Rooms {
    async fn open(
        config: &KmeConfig,
        supervisor: &Supervisor,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let random: Arc<dyn Random> = Arc::new(OsRandom);
        let tls = identity::tls_of_kme(config)?;
        let store = store(config, &clock, &random).await?;
        let directory = Arc::new(ArcSwap::from_pointee(config.directory().clone()));
        let peers = peers(config, &tls, &random, &PeerMeters::register(registry))?;
        let pool_servers = pool_servers(config, &tls, &clock, &random)?;
        let source_sets = SourceSets::new(
            Arc::clone(&pool_servers),
            PeerAnnouncer::new(Arc::clone(&peers)),
            wiring::source_sets(config),
            Arc::clone(&clock),
        );
        let recipient_sets =
            RecipientSets::new(Arc::clone(&pool_servers), wiring::recipient_sets(config), Arc::clone(&clock));
        store.register_metrics(registry);
        let pools = KmePools {
            servers: Arc::clone(&pool_servers),
            own: Arc::clone(&source_sets),
            of_peers: Arc::clone(&recipient_sets),
            peers: peers.iter().map(|peer| peer.kme().clone()).collect(),
        };
        gauges::of_pools(registry, pools);
        let meter = Arc::new(SupplyMeter::register(registry, peers.iter().map(|peer| peer.kme())));
        let limited = LimitMeter::register(registry);
        let usage = Arc::clone(store.usage());
        let quotas = Quotas::new(config.id.clone(), wiring::quotas(config), usage, limited.clone());
        gauges::of_quotas(registry, &quotas);
        let parts = SupplyParts {
            local: config.id.clone(),
            peers: Arc::clone(&peers),
            sets: Arc::clone(&source_sets),
            store: Arc::clone(&store),
            quotas: Arc::clone(&quotas),
            clock: Arc::clone(&clock),
            random,
            meter: Arc::clone(&meter),
            tasks: supervisor.work.clone(),
            stopping: supervisor.shutdown.clone(),
        };
        let supply = Supply::new(parts, wiring::supply(config));
        let intake = Intake::new(
            Arc::clone(&directory),
            wiring::intake(config),
            recipient_sets,
            Arc::clone(&store),
            Arc::clone(&quotas),
            Arc::clone(&clock),
            meter,
        );
        let source: Arc<dyn KeySource> = Arc::clone(&supply) as _;
        let rules = wiring::delivery(config);
        let delivery = Arc::new(Delivery::new(Arc::clone(&directory), rules, Arc::clone(&store), source));
        Ok(Self {
            clock,
            tls,
            store,
            quotas,
            limited,
            directory,
            peers,
            pool_servers,
            source_sets,
            intake,
            supply,
            delivery,
        })
    }

    /// Binds all listeners, then serves them. Returns the SAEs as the `sae` listener sees them.
    async fn listen(
        &self,
        config: &KmeConfig,
        supervisor: &mut Supervisor,
        mut registry: Registry,
    ) -> anyhow::Result<Arc<Clients>> {
        let bind = |name, address| bind(&config.id, name, address);
        let (sae, peer, admin) = (
            bind("sae", config.listen.sae).await?,
            bind("peer", config.listen.peer).await?,
            bind("admin", config.listen.admin).await?,
        );
        let requests = RequestMeters::register(&mut registry);
        let edge = wiring::edge_limits(config);
        let LimitsConfig { max_connections, handshakes, shutdown_grace, .. } = config.limits;
        let limits = wiring::listener_limits(max_connections, handshakes, shutdown_grace);
        let mutual = |rules, accepts, versions| {
            let store = Arc::clone(&self.tls);
            ListenerTls::Mutual { store, rules, accepts, versions }
        };
        let strict = || wiring::strict_identity_rules(&config.trust_domain);

        let limited = &self.limited;
        let largest = config.keys.limits.max_per_request;
        let saes = Clients::new("sae", wiring::sae_limits(config), largest, limited.clone());
        let clients = Arc::clone(&saes);
        let (delivery, work) = (Arc::clone(&self.delivery), supervisor.work.clone());
        let api = http::sae::api(delivery, clients, edge, work, &requests);
        let tls = ListenerTls::Mutual {
            store: self.tls.for_saes(),
            rules: wiring::sae_identity_rules(config),
            accepts: &[Kind::Sae],
            versions: Versions::Compatible,
        };
        supervisor.listener("sae", sae, tls, api, limits);

        let body_max = config.limits.max_body_kib.saturating_mul(1024);
        let intake = Arc::clone(&self.intake);
        let largest = u32::try_from(KEYS_PER_PUSH_MAX).unwrap_or(u32::MAX);
        let clients = Clients::new("peer", wiring::peer_limits(config), largest, limited.clone());
        let work = supervisor.work.clone();
        let router = http::peer::router(intake, clients, edge, body_max, work, &requests);
        let tls = mutual(strict(), &[Kind::Kme], Versions::Latest);
        supervisor.listener("peer", peer, tls, router, limits);

        let is_plain = config.listen.admin_is_loopback();
        let common = self.common(supervisor);
        gauges::of_daemon(&mut registry, "kme", config.id.to_string(), &common);
        gauges::of_peers(&mut registry, &self.peers);
        gauges::of_reserve(&mut registry, &self.supply);
        let health = KmeHealth {
            common,
            store: Arc::clone(&self.store),
            peers: Arc::clone(&self.peers),
            pool_servers: Arc::clone(&self.pool_servers),
        };
        let api = http::sae::description(&config.keys.limits).context("the API cannot be described")?;
        let parts = AdminParts {
            health: Arc::new(health),
            readiness: ReadinessMeter::register(&mut registry),
            registry,
            description: Some(api),
            operators_only: !is_plain,
        };
        let router = http::admin::router(parts, supervisor.work.clone(), &requests);
        let tls = if is_plain {
            ListenerTls::Plain
        } else {
            mutual(strict(), &[Kind::Operator], Versions::Compatible)
        };
        supervisor.admin(admin, tls, router, limits);
        Ok(saes)
    }

    fn common(&self, supervisor: &Supervisor) -> Common {
        Common {
            tls: Arc::clone(&self.tls),
            clock: Arc::clone(&self.clock),
            stopping: supervisor.stopping.clone(),
            restarts: supervisor.restarts.clone(),
            listeners: supervisor.listeners.clone(),
        }
    }

    fn start_background(
        &self,
        config: &KmeConfig,
        origin: Option<Origin>,
        saes: Arc<Clients>,
        supervisor: &Supervisor,
    ) {
        let (sets, intake) = (Arc::clone(&self.source_sets), Arc::clone(&self.intake));
        supervisor
            .background("sweep of pool sets", move || sweep_sets(Arc::clone(&sets), Arc::clone(&intake)));
        let sets = Arc::clone(&self.source_sets);
        supervisor.background("watch over readers of pools", move || Arc::clone(&sets).watch_readers());
        let servers = Arc::clone(&self.pool_servers);
        supervisor.background("watch over pool servers", move || watch_servers(Arc::clone(&servers)));
        let supply = Arc::clone(&self.supply);
        supervisor.background("keeping keys ready", move || Arc::clone(&supply).keep_filled());
        let store = Arc::clone(&self.store);
        supervisor.background("sweep of keys", move || sweep_store(Arc::clone(&store)));
        let store = Arc::clone(&self.store);
        supervisor.background("count of stored keys", move || count_stored(Arc::clone(&store)));
        let directory = origin.map(|origin| DirectoryReload {
            origin,
            current: config.clone(),
            directory: Arc::clone(&self.directory),
            saes,
            quotas: Arc::clone(&self.quotas),
            limits: Mutex::new(DirectoryReload::limits_of(config)),
        });
        let files = Arc::new(Reload { tls: Arc::clone(&self.tls), directory });
        supervisor.background("reload of files", move || reload::watch(Arc::clone(&files)));
        for peer in self.peers.iter() {
            for place in 0..peer.addresses().count() {
                let (peer, supply) = (Arc::clone(peer), Arc::clone(&self.supply));
                let skew_max = config.limits.clock_skew_max;
                let clock = Arc::clone(&self.clock);
                supervisor.background("watch over a peer", move || {
                    watch_peer(Arc::clone(&peer), place, Arc::clone(&supply), Arc::clone(&clock), skew_max)
                });
            }
        }
    }
}

async fn store(
    config: &KmeConfig,
    clock: &Arc<dyn Clock>,
    random: &Arc<dyn Random>,
) -> anyhow::Result<Arc<Store>> {
    let keks = identity::keks_of(config)?;
    let url = wiring::store_url(&config.store)?;
    let settings = StoreSettings { url, kme: config.id.clone(), keks, migrate: config.store.migrate };
    let store = Store::open(settings, Arc::clone(clock), Arc::clone(random));
    Ok(Arc::new(store.await.with_context(|| format!("store {}", config.store.location))?))
}

fn peers(
    config: &KmeConfig,
    tls: &Arc<TlsStore>,
    random: &Arc<dyn Random>,
    meters: &PeerMeters,
) -> anyhow::Result<Arc<Peers>> {
    let settings = PeerClientSettings { timeout: config.limits.peer_timeout, max_in_flight: PEER_CALLS_MAX };
    let mut clients = Vec::with_capacity(config.peers.len());
    for peer in &config.peers {
        let expected = ExpectedServer::Kme(peer.id.clone());
        let https = HttpsClient::new(Arc::clone(tls), expected, &config.trust_domain, HttpVersion::Http2)?;
        let urls: Vec<&str> = peer.urls.iter().map(BaseUrl::as_str).collect();
        let client = PeerClient::new(peer.id.clone(), &urls, &https, settings, Arc::clone(random));
        clients.push(client.metered(meters));
    }
    Ok(Peers::new(clients))
}

fn pool_servers(
    config: &KmeConfig,
    tls: &Arc<TlsStore>,
    clock: &Arc<dyn Clock>,
    random: &Arc<dyn Random>,
) -> anyhow::Result<Arc<PoolServers>> {
    let mut clients = Vec::with_capacity(config.pool_servers.len());
    for server in &config.pool_servers {
        let expected = ExpectedServer::Pool(server.id.clone());
        let https = HttpsClient::new(Arc::clone(tls), expected, &config.trust_domain, HttpVersion::Http2)?;
        let url: ::http::Uri = server.url.as_str().parse()?;
        clients.push(PoolClient::new(server.id.clone(), &url, https, config.limits.peer_timeout));
    }
    let settings = wiring::pool_servers(config);
    Ok(PoolServers::new(config.id.clone(), clients, settings, Arc::clone(clock), Arc::clone(random)))
}

async fn sweep_sets(sets: Arc<SourceSets>, intake: Arc<Intake>) {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        sets.sweep();
        intake.sweep();
    }
}

async fn watch_servers(servers: Arc<PoolServers>) {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        servers.probe().await;
    }
}

async fn sweep_store(store: Arc<Store>) {
    loop {
        sleep(STORE_SWEEP_EVERY).await;
        let (mut rows, mut since) = (STORE_SWEEP_ROWS, Instant::now());
        loop {
            let started = Instant::now();
            if since.elapsed() > STORE_SWEEP_EVERY {
                (rows, since) = ((2 * rows).min(STORE_SWEEP_ROWS_MAX), started);
            }
            match store.sweep(rows).await {
                Ok(swept) if swept.any() => {
                    tracing::debug!(keys = swept.keys, batches = swept.batches, "expired keys were erased");
                }
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "expired keys could not be erased; they still cannot be retrieved"
                    );
                    sleep(STORE_SWEEP_AGAIN).await;
                    break;
                }
            }
            // Leaves half of the writer's time for other jobs.
            sleep(started.elapsed()).await;
        }
    }
}

/// Counts what is stored for whom, again and again, with a small part of the database's time.
async fn count_stored(store: Arc<Store>) {
    loop {
        let pause = match store.count_stored().await {
            Ok(busy) => (busy * COUNT_PAUSE).max(COUNT_EVERY),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "stored keys could not be counted; quotas go by the last count"
                );
                STORE_SWEEP_AGAIN
            }
        };
        sleep(pause).await;
    }
}

/// Keeps a pool set ready for `peer`, so that the first request does not wait for one. Notices when the
/// replica at address number `place` is back, and when its clock is wrong.
async fn watch_peer(
    peer: Arc<PeerClient>,
    place: usize,
    supply: Arc<Supply>,
    clock: Arc<dyn Clock>,
    skew_max: Duration,
) {
    let url = peer.addresses().nth(place).map(|(url, _)| url.to_owned()).unwrap_or_default();
    let mut failures = 0_u32;
    let mut was_skewed = false;
    loop {
        let asked_at = clock.now();
        let pause = match peer.info_at(place).await {
            Ok(info) => {
                let answered_at = clock.now();
                let skew = info.clock.since(answered_at).max(asked_at.since(info.clock));
                let is_skewed = skew > skew_max;
                if is_skewed && !was_skewed {
                    let skew_ms = u64::try_from(skew.as_millis()).unwrap_or(u64::MAX);
                    tracing::error!(peer = %peer.kme(), url, skew_ms, "the clocks differ too much; keys are refused");
                }
                was_skewed = is_skewed;
                let is_prepared = supply.prepare(peer.kme()).await.is_ok();
                failures = if is_prepared { 0 } else { failures.saturating_add(1) };
                if is_prepared { WATCH_EVERY } else { WATCH_AGAIN.after(failures) }
            }
            Err(error) => {
                tracing::debug!(
                    peer = %peer.kme(), url, error = &error as &dyn std::error::Error,
                    "a peer does not answer"
                );
                failures = 0;
                TICK
            }
        };
        sleep(pause).await;
    }
}
