//! Pool servers that are missing or lie, and readers of pools that should not exist, against real daemons.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::Method;
use http_body_util::BodyExt as _;
use kme::{OsRandom, SystemClock};
use mtls::identity::{ClientIdentity, IdentityRules, Kind, SaeIdentitySource};
use mtls::{
    ConnectionService, ListenerLimits, ListenerService, ListenerTls, TlsFiles, TlsStore, Versions, listener,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use dqkd::http::RequestMeters;
use dqkd::http::limits::Clients;
use dqkd::http::middleware::EdgeLimits;
use dqkd::http::{Guarded, GuardedConnection};
use dqkd::pool::{PoolVault, VaultLimits};
use testkit::{Curl, Network, eventually, needs};

/// Keys are made on demand only, so that each request shows whether they can be made.
const ON_DEMAND: &str = "[keys]\nmin_stored_per_pair = 0\n\n[store]";

fn on_demand(network: &Network, pools: &str) {
    for site in 0..2 {
        network.configure(site, "[store]", &format!("[pools]\n{pools}\n\n{ON_DEMAND}"));
    }
}

#[test]
fn fewer_pool_servers_than_pools_min_are_a_503_that_names_the_missing_one() {
    needs!(Curl);
    let mut network = Network::generate(2);
    on_demand(&network, "");
    network.start_pools(2);
    network.start_sites();
    let mut refused = network.enc("alice", "bob", "");
    let expected = "too few random pool servers answer: 2 of the 3 that keys need here; missing: pool-3";
    eventually("the missing server is named", || {
        refused = network.enc("alice", "bob", "");
        refused.status == 503 && refused.message() == expected
    });
    assert!(refused.headers.contains("retry-after: "), "{refused:?}");
    eventually("readyz notices", || network.part(0, "pool servers") == "degraded");
    let told = network.part_message(0, "pool servers");
    assert!(told.contains("pool server pool-3") && told.contains("pools_min = 3"), "{told}");
    let metrics = network.metrics(0);
    assert!(metrics.contains("\ndqkd_pools_missing 1\n"), "{metrics}");
    assert!(metrics.contains("\ndqkd_pool_servers_available 2\n"), "{metrics}");
    network.start_pool(2);
    eventually("three are enough", || network.enc("alice", "bob", "").status == 200);
    eventually("readyz notices", || network.part(0, "pool servers") == "ok");
    let key = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&key.0]).key(), key);
}

#[test]
fn two_of_three_pool_servers_are_enough_where_pools_min_says_so() {
    needs!(Curl);
    let mut network = Network::generate(2);
    on_demand(&network, "pools_min = 2");
    network.start_pools(2);
    network.start_sites();
    eventually("two are enough", || network.enc("alice", "bob", "").status == 200);
    let key = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&key.0]).key(), key);
    assert!(network.part_message(0, "pool servers").contains("pool-3"));
}

#[test]
fn a_recipient_that_demands_more_pools_is_named_in_the_503_and_in_readyz() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.configure(0, "[store]", &format!("[pools]\npools_min = 2\n\n{ON_DEMAND}"));
    network.start_pools(2);
    network.start_sites();
    let expected = "KME site-b accepts only keys from 3 or more random pools";
    eventually("site-b's demand is named", || network.enc("alice", "bob", "").message() == expected);
    let told = network.part_message(0, "pool servers");
    assert!(told.contains("KME site-b accepts only sets of 3 or more pools"), "{told}");
    network.start_pool(2);
    eventually("three are enough", || network.enc("alice", "bob", "").status == 200);
    eventually("the demand is met", || network.part(0, "pool servers") == "ok");
}

/// Whom bad servers treat badly.
const VICTIM: &str = "site-b";

/// What a bad server does to the downloads of its victim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trick {
    /// Sends other bytes than to everybody else.
    Lies,
    /// Begins, and never goes on.
    Stalls,
}

/// A pool server that is honest to all but one reader, and to that one until a moment.
struct LyingServer {
    lies: Arc<AtomicBool>,
    stop: CancellationToken,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl Drop for LyingServer {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.serving.take().unwrap().join();
    }
}

impl LyingServer {
    /// In place of the pool server number `index` of `network`.
    fn start(network: &Network, index: usize, trick: Trick) -> Self {
        let (lies, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let server = network.pool(index);
        let address: SocketAddr = server.url.trim_start_matches("https://").parse().unwrap();
        let file = |name: String| network.pki().join(name);
        let (cert, key) = (file(format!("{}.pem", server.id)), file(format!("{}.key", server.id)));
        let store = TlsStore::open(TlsFiles { ca: network.ca(), cert, key, crl: None }).unwrap();
        let rules = IdentityRules {
            trust_domain: "dqkd.example".to_owned(),
            sae_sources: vec![SaeIdentitySource::Spiffe],
        };
        let tls = ListenerTls::Mutual { store, rules, accepts: &[Kind::Kme], versions: Versions::Latest };
        let (flag, stopped) = (Arc::clone(&lies), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let tcp = tokio::net::TcpListener::bind(address).await.unwrap();
                ready.send(()).unwrap();
                let router = Liar { honest: honest(), trick, lies: flag };
                let limits = ListenerLimits { shutdown_grace: Duration::ZERO, ..ListenerLimits::default() };
                listener::serve("pool", tcp, tls, router, limits, stopped).await;
            });
        });
        is_ready.recv().unwrap();
        Self { lies, stop, serving: Some(serving) }
    }

    fn starts_to_lie(&self) {
        self.lies.store(true, Ordering::SeqCst);
    }
}

fn honest() -> Guarded {
    let limits = VaultLimits {
        memory_max_bytes: 256 << 20,
        owner_memory_max_bytes: 128 << 20,
        pools_max: 1024,
        words_min: 1 << 14,
        words_max: 1 << 20,
        ttl_max: Duration::from_hours(1),
        readers_max: 16,
        kmes: None,
    };
    let vault = Arc::new(PoolVault::new(limits, Arc::new(SystemClock), Arc::new(OsRandom)));
    let edge = EdgeLimits { max_concurrent: 64, timeout: Duration::from_secs(30) };
    let clients = Clients::unlimited("pool");
    let creations = std::num::NonZeroU32::MAX;
    dqkd::http::pool::router(vault, clients, edge, creations, TaskTracker::new(), &RequestMeters::default())
}

/// Serves as an honest server would, but for the downloads of one victim.
struct Liar {
    honest: Guarded,
    trick: Trick,
    lies: Arc<AtomicBool>,
}

#[derive(Clone)]
struct LyingConnection {
    honest: GuardedConnection,
    trick: Trick,
    /// Whether the client is lied to; never for anybody but the victim.
    lies: Arc<AtomicBool>,
}

impl ListenerService for Liar {
    type Connection = LyingConnection;

    fn open(&self, client: ClientIdentity) -> LyingConnection {
        let is_victim = client.name() == Some(VICTIM);
        let lies = if is_victim { Arc::clone(&self.lies) } else { Arc::default() };
        LyingConnection { honest: self.honest.open(client), trick: self.trick, lies }
    }
}

impl ConnectionService for LyingConnection {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<> {
        let is_download = request.method() == Method::GET && !request.uri().path().ends_with("/reads");
        let (answer, trick, lies) = (self.honest.answer(request), self.trick, Arc::clone(&self.lies));
        async move {
            let (mut parts, body) = answer.await.into_parts();
            if !is_download || !parts.status.is_success() || !lies.load(Ordering::SeqCst) {
                return Response::from_parts(parts, body);
            }
            if trick == Trick::Stalls {
                let never = futures_util::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
                return Response::from_parts(parts, Body::from_stream(never));
            }
            let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
            for byte in &mut bytes {
                *byte = !*byte;
            }
            parts.headers.remove("content-length");
            Response::from_parts(parts, Body::from(bytes))
        }
    }
}

#[test]
fn a_lying_pool_server_is_named_at_both_sites_and_keys_flow_without_it() {
    needs!(Curl);
    let mut network = Network::generate_with(2, 4);
    // Every set has a pool of every server while that is possible, and sets are short-lived.
    on_demand(&network, "pools_per_set = 4\npools_min = 3\nset_ttl = \"6s\"");
    network.start_pools(3);
    let liar = LyingServer::start(&network, 3, Trick::Lies);
    network.start_sites();
    let mut delivered = BTreeSet::new();
    let mut share = |network: &Network| {
        let answer = network.enc("alice", "bob", "");
        if answer.status != 200 {
            return Some(answer.message());
        }
        let (id, key) = answer.key();
        assert_eq!(network.dec("bob", "alice", &[&id]).key(), (id, key.clone()));
        assert!(delivered.insert(key), "a key was delivered twice");
        None
    };
    eventually("keys flow with four servers", || share(&network).is_none());
    assert_eq!(network.part(0, "pool servers"), "ok");

    liar.starts_to_lie();
    let named =
        |site: usize| network.part_message(site, "pool servers").contains("pool-4 is under quarantine");
    let mut failed = Vec::new();
    eventually("the liar is named", || {
        failed.extend(share(&network));
        named(0)
    });
    assert!(named(1), "both sites find the same: {}", network.part_message(1, "pool servers"));
    for (site, peer) in [(0, "site-b"), (1, "site-a")] {
        let line = format!("dqkd_pool_server_quarantined{{server=\"pool-4\",peer=\"{peer}\"}} 1\n");
        assert!(network.metrics(site).contains(&line), "{}", network.metrics(site));
        assert!(!network.metrics(site).contains("server=\"pool-1\",peer="), "only the liar");
        assert!(network.daemon(site).log().contains("gave two sites different pools"));
    }
    // The very request that found it was served with a set of the other three, or the next one was.
    assert!(failed.len() <= 2, "{failed:?}");
    for _ in 0..5 {
        assert_eq!(share(&network), None);
    }
    // The other direction too: site-b does not use it for keys with site-a.
    let (id, key) = network.enc("bob", "alice", "").key();
    assert_eq!(network.dec("alice", "bob", &[&id]).key(), (id, key));
}

#[test]
fn with_a_liar_and_no_server_to_spare_the_503_names_it() {
    needs!(Curl);
    let mut network = Network::generate(2);
    on_demand(&network, "");
    network.start_pools(2);
    let liar = LyingServer::start(&network, 2, Trick::Lies);
    liar.starts_to_lie();
    network.start_sites();
    let expected = "too few random pool servers answer: 0 of the 3 that keys need here; missing: pool-3";
    eventually("it is named", || network.enc("alice", "bob", "").message() == expected);
    let told = network.part_message(0, "pool servers");
    assert!(told.contains("pool-3 is under quarantine for keys shared with site-b"), "{told}");
    // Keys within the own site do not concern site-b.
    eventually("site-a alone has keys", || network.enc("alice", "dave", "").status == 200);
}

#[test]
fn a_pool_server_that_the_recipient_cannot_read_is_left_out_of_the_next_set() {
    needs!(Curl);
    let mut network = Network::generate_with(2, 4);
    on_demand(&network, "pools_per_set = 4\npools_min = 3");
    network.start_pools(3);
    let bad = LyingServer::start(&network, 3, Trick::Stalls);
    bad.starts_to_lie();
    network.start_sites();
    eventually("keys flow without it", || network.enc("alice", "bob", "").status == 200);
    let (id, key) = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&id]).key(), (id, key));
    let log = network.daemon(0).log();
    assert!(log.contains("a peer cannot use a pool server"), "site-b names it to site-a: {log}");
    // Site-b saw it itself.
    assert!(network.daemon(1).log().contains("pool server pool-4 did not send the pool in time"));
}

#[test]
fn an_extra_reader_of_a_pool_retires_its_set_at_once_and_is_shown() {
    needs!(Curl);
    let network = Network::start(2);
    eventually("keys flow", || network.enc("alice", "bob", "").status == 200);
    // A thief of site-b's certificate reads a pool whose ID it has learnt.
    let log = std::fs::read_to_string(network.pool(0).config.with_extension("log")).unwrap();
    let thief =
        Curl::pem(&network.ca(), &network.pki().join("site-b.pem"), &network.pki().join("site-b.key"));
    // The pools that site-a made and site-b read.
    let pools: BTreeSet<String> = log
        .lines()
        .filter(|line| line.contains("pool made") && line.contains("site-a"))
        .filter_map(|line| line.split("pool=").nth(1))
        .map(|rest| rest.split(' ').next().unwrap().to_owned())
        .collect();
    assert!(!pools.is_empty(), "{log}");
    for pool in pools {
        let url = format!("{}/pool/v1/pools/{pool}", network.pool(0).url);
        thief.call(&["--output", "/dev/null", &url]);
    }
    eventually("it is noticed", || network.part(0, "pool readers") == "degraded");
    let told = network.part_message(0, "pool readers");
    assert!(told.contains("KME site-b read pool") && told.contains("at pool-1"), "{told}");
    assert!(!network.metrics(0).contains("dqkd_pool_extra_reads_total{server=\"pool-1\"} 0\n"));
    eventually("keys flow from another set", || network.enc("alice", "bob", "").status == 200);
}
