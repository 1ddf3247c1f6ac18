//! Measures the cost of distance: keys on demand, generation and refills over a link with 40 ms round trip
//! that loses one segment in a hundred. The proxy simulates the link; the kernel's `netem`, where there is
//! one, is closer to reality.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use testkit::Network;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Shape};
use crate::outage::{Handed, RESERVE, ask, check, filled, keys};
use crate::proxy::Mode;
use crate::wire::Wire;

const SHAPE: Shape = Shape { sites: 2, replicas: 1, is_postgres: false };
const ONE_WAY: Duration = Duration::from_millis(20);
const ON_DEMAND: usize = 300;
const CLIENTS: usize = 8;
const GENERATION: Duration = Duration::from_secs(10);
const REFILLS: usize = 5;
/// The most that `keys.max_per_request` allows.
const BLOCK: usize = 128;

/// Prints the figures. Fails if a key has no equal twin.
pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        on_demand().await;
        reserve().await;
    });
}

fn set_links(cluster: &Cluster, mode: Mode) {
    let peers = cluster.links.iter().filter(|link| link.name.contains(" to site "));
    peers.for_each(|link| link.set(mode));
}

async fn enc(wire: &mut Wire, number: usize) -> Option<Handed> {
    let path = format!("/api/v1/keys/bob/enc_keys?number={number}");
    let (status, body) = ask(wire, Method::GET, &path, None).await;
    (status == 200).then(|| keys(&body))
}

/// Keeps no keys ready, so each request goes to the other site and back.
async fn on_demand() {
    let cluster = Cluster::start(SHAPE, "min_stored_per_pair = 0");
    set_links(&cluster, Mode::Far(ONE_WAY));
    let mut wire = Wire::new(&cluster.network, "alice", false);
    let (mut handed, mut took) = (Vec::new(), Vec::new());
    while handed.len() < ON_DEMAND {
        let began = Instant::now();
        match enc(&mut wire, 1).await {
            Some(keys) => {
                took.push(began.elapsed());
                handed.extend(keys);
            }
            // The sites have not reached each other yet.
            None => sleep(Duration::from_millis(200)).await,
        }
    }
    // The first requests also made the connection and the pool set.
    let mut steady = took.split_off(ON_DEMAND / 10);
    steady.sort_unstable();
    let at = |percent: usize| steady[(steady.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let round_trip = ONE_WAY.as_secs_f64() * 2e3;
    println!(
        "wan: on demand over {round_trip} ms and 1% loss: p50 {:.1} ms ({:.2} round trips), p90 {:.1}, p99 {:.1}",
        at(50),
        at(50) / round_trip,
        at(90),
        at(99)
    );
    check(&cluster.network, &handed).await;
}

async fn reserve() {
    let cluster = Cluster::start(SHAPE, &format!("min_stored_per_pair = {RESERVE}"));
    let network = &cluster.network;
    set_links(&cluster, Mode::Far(ONE_WAY));
    let first = filled(network, RESERVE).await;
    println!("wan: a first reserve of {RESERVE} keys took {:.2} s", first.as_secs_f64());
    let mut refills = Vec::new();
    for _ in 0..REFILLS {
        let handed = empty(network).await;
        refills.push(filled(network, RESERVE).await);
        check(network, &handed).await;
    }
    refills.sort_unstable();
    println!(
        "wan: refill of {RESERVE} keys: median {:.2} s of {refills:.2?}",
        refills[REFILLS / 2].as_secs_f64()
    );

    set_links(&cluster, Mode::Cut);
    let handed = empty(network).await;
    sleep(Duration::from_secs(5)).await;
    set_links(&cluster, Mode::Far(ONE_WAY));
    println!("wan: full again {:.2} s after a cut of some 5 s", filled(network, RESERVE).await.as_secs_f64());
    check(network, &handed).await;
    generation(&cluster).await;
}

/// Takes nearly all of the reserve, which may refill meanwhile.
async fn empty(network: &Network) -> Handed {
    let mut wire = Wire::new(network, "alice", false);
    let mut handed = Vec::new();
    while handed.len() + BLOCK <= usize::try_from(RESERVE).unwrap() {
        let Some(keys) = enc(&mut wire, BLOCK).await else { break };
        handed.extend(keys);
    }
    handed
}

/// Measures how many keys are made while clients take all they can get.
async fn generation(cluster: &Cluster) {
    let network = &cluster.network;
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut clients = JoinSet::new();
    drop(empty(network).await);
    let began = Instant::now();
    for _ in 0..CLIENTS {
        let (mut wire, goes_on) = (Wire::new(network, "alice", false), Arc::clone(&goes_on));
        clients.spawn(async move {
            let mut handed = Vec::new();
            while goes_on.load(Ordering::SeqCst) {
                match enc(&mut wire, BLOCK).await {
                    Some(keys) => handed.extend(keys),
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
            handed
        });
    }
    sleep(GENERATION).await;
    goes_on.store(false, Ordering::SeqCst);
    let mut handed = Vec::new();
    while let Some(ended) = clients.join_next().await {
        handed.extend(ended.unwrap());
    }
    let took = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = handed.len() as f64 / took;
    println!("wan: generation for {CLIENTS} clients that take all: {rate:.0} keys/s over {took:.1} s");
    check(network, &handed).await;
}
