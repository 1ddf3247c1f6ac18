//! Measures an outage, a reconnection and a stop: a full reserve against steady demand while the link between
//! the sites is cut, the time until the reserve is full again, a graceful stop under load.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use testkit::Network;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::cluster::{Cluster, Shape};
use crate::proxy::Mode;
use crate::wire::{Reply, Wire};

pub(crate) const RESERVE: u64 = 4096;
const REQUESTS_EACH_SEC: u32 = 50;
const CLIENTS: u32 = 5;
/// Far longer than anything here should take. The figures are printed, not checked.
const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) type Handed = Vec<(String, String)>;

/// One outage of the length `lasts`. Fails if a request fails that must not, or if a key has no equal twin.
pub(crate) fn run(lasts: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(execute(lasts));
}

async fn execute(lasts: Duration) {
    let shape = Shape { sites: 2, replicas: 1, is_postgres: false };
    let cluster = Cluster::start(shape, &format!("min_stored_per_pair = {RESERVE}"));
    let network = &cluster.network;
    let filled = filled(network, RESERVE).await;
    println!("outage: a first reserve of {RESERVE} keys took {:.2} s", filled.as_secs_f64());

    let between = |mode: Mode| {
        let peers = cluster.links.iter().filter(|link| link.name.contains(" to site "));
        peers.for_each(|link| link.set(mode));
    };
    between(Mode::Cut);
    let mut handed = Vec::new();
    let mut failed = 0;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(steady(Wire::new(network, "alice", false), lasts));
    }
    while let Some(ended) = clients.join_next().await {
        let (keys, failures) = ended.unwrap();
        handed.extend(keys);
        failed += failures;
    }
    println!(
        "outage: link cut for {} s at {REQUESTS_EACH_SEC} requests/s: {} answered, {failed} failed",
        lasts.as_secs(),
        handed.len()
    );
    between(Mode::Pass);
    let again = self::filled(network, RESERVE).await;
    println!("outage: full again {:.2} s after the link was back", again.as_secs_f64());
    assert_eq!(failed, 0, "requests failed while keys were ready");
    check(network, &handed).await;
    stop_under_load(&cluster).await;
}

/// Waits until the reserve of alice and bob is full: at least `reserve` keys, more if its target has grown.
pub(crate) async fn filled(network: &Network, reserve: u64) -> Duration {
    let mut wire = Wire::new(network, "alice", false);
    let started = Instant::now();
    loop {
        let (_, body) = ask(&mut wire, Method::GET, "/api/v1/keys/bob/status", None).await;
        if body["stored_key_count"].as_u64() >= Some(reserve) {
            return started.elapsed();
        }
        assert!(started.elapsed() < PATIENCE, "the reserve does not fill: {body}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// One client's share of the demand. Returns its keys, and how often it got none.
async fn steady(mut wire: Wire, lasts: Duration) -> (Handed, usize) {
    let mut ticks = interval(Duration::from_secs(1) * CLIENTS / REQUESTS_EACH_SEC);
    let (started, mut handed, mut failed) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < lasts {
        ticks.tick().await;
        match ask(&mut wire, Method::GET, "/api/v1/keys/bob/enc_keys", None).await {
            (200, body) => handed.extend(keys(&body)),
            _ => failed += 1,
        }
    }
    (handed, failed)
}

/// Stops site A while clients ask as fast as they can. Every key of a complete answer has its twin.
async fn stop_under_load(cluster: &Cluster) {
    let network = &cluster.network;
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (mut wire, goes_on) = (Wire::new(network, "alice", false), Arc::clone(&goes_on));
        clients.spawn(async move {
            let mut handed = Vec::new();
            while goes_on.load(Ordering::SeqCst) {
                let (status, body) = ask(&mut wire, Method::GET, "/api/v1/keys/bob/enc_keys", None).await;
                if status == 200 {
                    handed.extend(keys(&body));
                } else {
                    sleep(Duration::from_millis(10)).await;
                }
            }
            handed
        });
    }
    sleep(Duration::from_secs(1)).await;
    let daemon = cluster.slots[0].daemon.lock().await.take().unwrap();
    let stopping = Instant::now();
    let status = tokio::task::spawn_blocking(|| daemon.terminate()).await.unwrap();
    let took = stopping.elapsed();
    assert!(status.success(), "{status}");
    goes_on.store(false, Ordering::SeqCst);
    let mut handed = Vec::new();
    while let Some(ended) = clients.join_next().await {
        handed.extend(ended.unwrap());
    }
    println!(
        "outage: a stop under load took {:.2} s; {} keys had been answered",
        took.as_secs_f64(),
        handed.len()
    );
    check(network, &handed).await;
}

/// Checks that bob gets every key once, with the same bytes.
pub(crate) async fn check(network: &Network, handed: &Handed) {
    let distinct: HashSet<&String> = handed.iter().map(|(id, _)| id).collect();
    assert_eq!(distinct.len(), handed.len(), "a key was handed out twice");
    let mut wire = Wire::new(network, "bob", false);
    for block in handed.chunks(64) {
        let ids: Vec<Value> = block.iter().map(|(id, _)| json!({ "key_ID": id })).collect();
        let body = json!({ "key_IDs": ids }).to_string();
        let (status, body) = ask(&mut wire, Method::POST, "/api/v1/keys/alice/dec_keys", Some(body)).await;
        assert_eq!(status, 200, "an answered key is lost: {}", body["message"]);
        let got = keys(&body);
        assert!(block.iter().all(|key| got.contains(key)), "a twin differs");
    }
}

pub(crate) async fn ask(wire: &mut Wire, method: Method, path: &str, body: Option<String>) -> (u16, Value) {
    match wire.call(method, path, body, None).await {
        Reply::Whole { status, body, .. } => (status, serde_json::from_slice(&body).unwrap_or_default()),
        Reply::NotSent | Reply::Lost => (0, Value::Null),
    }
}

pub(crate) fn keys(body: &Value) -> Handed {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let keys = body["keys"].as_array().unwrap();
    keys.iter().map(|key| (text(&key["key_ID"]), text(&key["key"]))).collect()
}
