//! Measures two replicas at each site: the cost of losing one under load, and the gain over one on the same
//! machine.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::Value;
use testkit::{output_of, qkd014};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Shape};
use crate::outage::{Handed, ask, check, filled, keys};
use crate::wire::Wire;

const KEYS: &str = "min_stored_per_pair = 4096";
const RESERVE: u64 = 4096;
/// A reserve is refilled when a whole block is missing.
const FULL: u64 = RESERVE - 63;
const CLIENTS: usize = 12;
const KILLS: usize = 2;
/// Time under load before a kill, and after it.
const LOAD: Duration = Duration::from_secs(2);
/// The aim is a second on an otherwise idle machine. The figure is printed.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// Pause of a client that was refused.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const ROUNDS: usize = 3;

/// One client's result of a run.
#[derive(Default)]
struct Client {
    handed: Handed,
    /// Requests without an answer of 200: the connection's port (`None`: no connection), when the request
    /// failed, and how long until the client got its next keys.
    failed: Vec<(Option<u16>, Instant, Duration)>,
}

/// Replicas of the first site are killed under load, one after the other.
pub(crate) fn kill_under_load(shape: Shape) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start(shape, KEYS);
        filled(&cluster.network, RESERVE).await;
        for number in 0..KILLS {
            one_kill(&cluster, number % shape.replicas).await;
        }
    });
}

async fn one_kill(cluster: &Cluster, replica: usize) {
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(load(Wire::new(&cluster.network, "alice", true), Arc::clone(&goes_on)));
    }
    sleep(LOAD).await;
    let mut place = cluster.slots[replica].daemon.lock().await;
    let daemon = place.take().unwrap();
    let ports: HashSet<u16> = cluster.balancers[0].clients_of(replica).into_iter().collect();
    assert!(!ports.is_empty(), "the load balancer gives every replica its share");
    spawn_blocking(move || daemon.kill()).await.unwrap();
    sleep(LOAD).await;
    goes_on.store(false, Ordering::SeqCst);
    let mut all = Client::default();
    while let Some(ended) = clients.join_next().await {
        let client = ended.unwrap();
        all.handed.extend(client.handed);
        all.failed.extend(client.failed);
    }
    let elsewhere = all.failed.iter().filter(|(port, ..)| port.is_some_and(|port| !ports.contains(&port)));
    let elsewhere = elsewhere.count();
    let no_connection = all.failed.iter().filter(|(port, ..)| port.is_none()).count();
    let slowest = all.failed.iter().map(|(_, _, took)| *took).max().unwrap_or_default();
    println!(
        "replicas: killed replica {replica}, which had {} of {CLIENTS} connections: {} requests answered, {} failed \
         ({no_connection} without a connection, {elsewhere} on connections to the other replica); slowest client had \
         keys again {:.3} s after its failure",
        ports.len(),
        all.handed.len(),
        all.failed.len(),
        slowest.as_secs_f64()
    );
    assert_eq!(elsewhere, 0, "requests failed on connections to the replica that lives");
    assert!(slowest < RECOVERY_MAX, "{slowest:?}");
    let slot = &cluster.slots[replica];
    *place = Some(slot.spawn().unwrap());
    check(&cluster.network, &all.handed).await;
}

/// Asks as fast as it can, and asks again after a failure.
async fn load(mut wire: Wire, goes_on: Arc<AtomicBool>) -> Client {
    let mut client = Client::default();
    let mut failing: Vec<(Option<u16>, Instant)> = Vec::new();
    // Goes on until the last failed request has succeeded.
    while goes_on.load(Ordering::SeqCst) || !failing.is_empty() {
        let port = wire.local_port();
        let (status, body) = ask(&mut wire, Method::GET, "/api/v1/keys/bob/enc_keys", None).await;
        if status == 200 {
            client.handed.extend(keys(&body));
            let recovered = failing.drain(..).map(|(port, at)| (port, at, at.elapsed()));
            client.failed.extend(recovered);
        } else {
            failing.push((port, Instant::now()));
            assert!(failing[0].1.elapsed() < RECOVERY_MAX, "a client never gets keys again");
            sleep(RETRY_PAUSE).await;
        }
    }
    client
}

/// Keys from alice to bob, each retrieved, with one replica of each site and with all, in alternation.
pub(crate) fn throughput(shape: Shape, each: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start(shape, KEYS);
        let (mut one, mut all) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            all.push(pairs_each_sec(&cluster, each).await);
            let mut stopped = Vec::new();
            for site in 0..shape.sites {
                for replica in 1..shape.replicas {
                    stopped.push(site * shape.replicas + replica);
                }
            }
            for slot in &stopped {
                let daemon = cluster.slots[*slot].daemon.lock().await.take().unwrap();
                assert!(spawn_blocking(|| daemon.terminate()).await.unwrap().success());
            }
            one.push(pairs_each_sec(&cluster, each).await);
            for slot in &stopped {
                let slot = &cluster.slots[*slot];
                *slot.daemon.lock().await = Some(slot.spawn().unwrap());
            }
        }
        let (one, all) = (median(one), median(all));
        println!(
            "replicas: {shape:?}: {all:.0} keys/s handed out and retrieved with all replicas, {one:.0} with one of \
             each site: ratio {:.2} (medians of {ROUNDS}, {CLIENTS} clients on the same machine)",
            all / one
        );
    });
}

/// Pairs per second that `qkd014 bench` gets through the load balancers, starting with a full reserve.
async fn pairs_each_sec(cluster: &Cluster, lasts: Duration) -> f64 {
    // Gives the load balancers time to notice which replicas are up.
    sleep(Duration::from_secs(1)).await;
    filled(&cluster.network, FULL).await;
    let ((site_a, alice), (site_b, bob)) = (cluster.network.sae("alice"), cluster.network.sae("bob"));
    let mut bench = qkd014();
    bench.args([
        "bench",
        "--json",
        "--op",
        "pair",
        "--sae-a",
        "alice",
        "--sae-b",
        "bob",
        "--url-a",
        &site_a.sae_url,
    ]);
    bench.args(["--url-b", &site_b.sae_url, "--connections", &CLIENTS.to_string()]);
    bench.args(["--duration", &lasts.as_secs().to_string()]).arg("--ca").arg(cluster.network.ca());
    for (name, file) in
        [("--cert-a", &alice.cert), ("--key-a", &alice.key), ("--cert-b", &bob.cert), ("--key-b", &bob.key)]
    {
        bench.arg(name).arg(file);
    }
    let output = spawn_blocking(move || output_of(&mut bench)).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["rounds"][0]["kme"];
    for wrong in ["different", "repeated", "malformed"] {
        assert_eq!(run["twins"][wrong], 0, "{run:#}");
    }
    run["keys_per_s"].as_f64().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
