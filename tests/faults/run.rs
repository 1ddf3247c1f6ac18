//! One run: a cluster, its workload and its faults. At the end everything is healed, retrieved and checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::Network;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::board::Board;
use crate::check::{Invariant, Rules, Violation, check, check_memory, check_recovery, count};
use crate::client::Client;
use crate::cluster::{Cluster, Shape};
use crate::history::{Ask, Caller, Event, History, Party, Slave, Stopwatch};
use crate::nemesis::{Deeds, Nemesis};
use crate::random::Choices;
use crate::schedule::Schedule;
use crate::workload::{Worker, World};

const WORKERS_PER_SAE: usize = 6;
/// Faults in one round. After it everything is healed and has to work again.
const STRIKES_PER_ROUND: usize = 20;
/// Longest time from healing to service in every direction: a client's patience, a dead connection (noticed
/// after 15 s without an answer to a ping), the circuit breaker's pause, a new pool set.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
const DRAIN_MAX: Duration = Duration::from_mins(2);
const MEMORY_MAX_KIB: u64 = 256 * 1024;
/// Violations that are printed in full.
const SHOWN: usize = 10;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) lasts: Duration,
    pub(crate) shape: Shape,
    /// `keys.ttl`. If it is shorter than the run, nothing is drained: the keys expire.
    pub(crate) ttl: Duration,
    pub(crate) is_expiring: bool,
}

/// Runs, prints a summary, and fails if an invariant is violated.
pub(crate) fn run(plan: Plan) {
    println!("faults: DQKD_FAULTS_SEED={} for {:?}, {:?}", plan.seed, plan.lasts, plan.shape);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (report, violations) = runtime.block_on(execute(plan));
    println!("{report}");
    for violation in violations.iter().take(SHOWN) {
        println!("VIOLATION {violation}");
    }
    assert!(
        violations.is_empty(),
        "{} violations, {:?}; repeat with DQKD_FAULTS_SEED={}",
        violations.len(),
        count(&violations),
        plan.seed
    );
}

async fn execute(plan: Plan) -> (String, Vec<Violation>) {
    let keys = format!("ttl = \"{}ms\"", plan.ttl.as_millis());
    let cluster = Arc::new(Cluster::start(plan.shape, &keys));
    if let Some(reason) = &cluster.no_disks_because {
        println!("faults: NO DISK FAULTS: no file system could be mounted: {reason}");
    }
    let world = Arc::new(world_of(&cluster.network, plan));
    let mut violations = Vec::new();
    let first = recovery(&cluster.network, &world).await;
    check_recovery(first, as_ms(RECOVERY_MAX), &mut violations);
    let mut workers = JoinSet::new();
    for worker in all_workers(&cluster.network, &world, plan.seed) {
        workers.spawn(worker.work());
    }
    let nemesis = Arc::new(Nemesis { cluster: Arc::clone(&cluster), deeds: Mutex::new(Deeds::default()) });
    let recoveries = torment(plan, &nemesis, &world, &mut violations).await;
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    if plan.is_expiring {
        sleep(plan.ttl).await;
    }
    let undrained = drain(&cluster.network, &world, plan.seed).await;
    for text in cluster.fallen().await {
        violations.push(Violation { invariant: Invariant::RecoversByItself, text });
    }
    let memory = cluster.memory_kib().await;
    check_memory(&memory, MEMORY_MAX_KIB, &mut violations);
    let events = world.history.take();
    let rules = Rules { ttl_ms: as_ms(plan.ttl), slack_ms: 150, drained: !plan.is_expiring };
    violations.extend(check(&events, rules));
    if !violations.is_empty() {
        let logs = std::env::temp_dir().join(format!("dqkd-faults-{}", plan.seed));
        cluster.keep_logs(&logs);
        let lines: Vec<String> = events.iter().map(|event| format!("{event:?}\n")).collect();
        std::fs::write(logs.join("history.txt"), lines.concat()).unwrap();
        println!("faults: logs are in {}", logs.display());
    }
    let deeds = nemesis.deeds.lock().unwrap().clone();
    let recovery_slowest_ms = recoveries.into_iter().max().unwrap_or_default();
    let summary = Summary { plan, world: &world, events: &events, deeds: &deeds };
    let report = format!(
        "{}\nfaults: slowest recovery {recovery_slowest_ms} ms, {undrained} retrievals left, memory KiB {memory:?}",
        summary.text(violations.len())
    );
    (report, violations)
}

/// Makes faults until the time is over, in rounds that end with healing. Returns how long service took to
/// come back.
async fn torment(
    plan: Plan,
    nemesis: &Arc<Nemesis>,
    world: &Arc<World>,
    violations: &mut Vec<Violation>,
) -> Vec<i64> {
    let cluster = &nemesis.cluster;
    let targets = cluster.targets();
    let mut schedule = Schedule::new(plan.seed, targets);
    let until = Instant::now() + plan.lasts;
    let mut recoveries = Vec::new();
    while Instant::now() < until {
        let mut strikes = JoinSet::new();
        for strike in schedule.by_ref().take(STRIKES_PER_ROUND) {
            sleep(strike.after).await;
            if Instant::now() >= until {
                break;
            }
            let what = cluster.name_of(strike.fault);
            println!("faults: {:7.1} s {what}, {:?}", world.stopwatch.elapsed_secs(), strike.lasts);
            let nemesis = Arc::clone(nemesis);
            strikes.spawn(async move { nemesis.strike(strike).await });
        }
        while let Some(ended) = strikes.join_next().await {
            ended.unwrap();
        }
        cluster.heal();
        for text in cluster.fallen().await {
            violations.push(Violation { invariant: Invariant::RecoversByItself, text });
        }
        let took = recovery(&cluster.network, world).await;
        println!("faults: {:7.1} s healed, service after {took:?} ms", world.stopwatch.elapsed_secs());
        check_recovery(took, as_ms(RECOVERY_MAX), violations);
        recoveries.extend(took);
    }
    recoveries
}

/// How long until every SAE gets keys with an SAE of every site; `None` if not in time.
async fn recovery(network: &Network, world: &Arc<World>) -> Option<i64> {
    let began = Instant::now();
    let all = async {
        for from in &world.saes {
            let mut client = Client::new(network, from.clone(), false);
            for to in world.saes.iter().filter(|to| to.sae != from.sae) {
                let slave = Slave { party: Party::Sae(to.sae.clone()), site: to.site };
                loop {
                    let ask = Ask::Enc { slaves: vec![slave.clone()], number: 1, bits: 256 };
                    let body = world.ask_expiry.then(|| world.enc_body(std::slice::from_ref(&slave), 1, 256));
                    let call = if body.is_some() { "enc_keys" } else { "enc_keys?size=256" };
                    let event = client.ask(world, call, &slave.party, ask, body, None).await;
                    if event.status() == 200 {
                        let ids: Vec<_> = event.keys().iter().map(|seen| seen.id).collect();
                        world.board.add_fresh(from, std::slice::from_ref(&slave), &ids);
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    timeout(2 * RECOVERY_MAX, all).await.ok().map(|()| as_ms(began.elapsed()))
}

/// Retrieves everything that is left. Returns how many retrievals could not be tried in time.
async fn drain(network: &Network, world: &Arc<World>, seed: u64) -> usize {
    world.stop.store(false, Ordering::Relaxed);
    let mut workers = JoinSet::new();
    for worker in all_workers(network, world, seed.wrapping_add(1)) {
        workers.spawn(worker.drain());
    }
    let all = async { while workers.join_next().await.is_some() {} };
    if timeout(DRAIN_MAX, all).await.is_err() {
        world.stop.store(true, Ordering::Relaxed);
    }
    world.board.left()
}

fn all_workers(network: &Network, world: &Arc<World>, seed: u64) -> Vec<Worker> {
    let worker = |index: usize, sae: &Caller| Worker {
        world: Arc::clone(world),
        client: Client::new(network, sae.clone(), index.is_multiple_of(2)),
        choices: Choices::new(seed, u64::try_from(index).unwrap() + 1),
    };
    let saes = world.saes.iter().flat_map(|sae| std::iter::repeat_n(sae, WORKERS_PER_SAE));
    saes.enumerate().map(|(index, sae)| worker(index, sae)).collect()
}

fn world_of(network: &Network, plan: Plan) -> World {
    let mut saes = Vec::new();
    let mut sites = Vec::new();
    for site in 0..plan.shape.sites {
        let config = &network.site(site).config;
        sites.push(config.file_stem().unwrap().to_string_lossy().into_owned());
        let here = network.site(site).saes.iter();
        saes.extend(here.map(|sae| Caller { sae: sae.id.as_str().into(), site }));
    }
    World {
        stopwatch: Stopwatch::start(),
        history: History::default(),
        board: Board::default(),
        saes,
        sites,
        ask_expiry: plan.is_expiring,
        stop: AtomicBool::new(false),
    }
}

fn as_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap()
}

struct Summary<'a> {
    plan: Plan,
    world: &'a World,
    events: &'a [Event],
    deeds: &'a Deeds,
}

impl Summary<'_> {
    fn text(&self, violations: usize) -> String {
        let mut statuses: BTreeMap<(&str, u16), usize> = BTreeMap::new();
        let mut keys = 0;
        for event in self.events {
            let call = match event.ask {
                Ask::Enc { .. } => "enc",
                Ask::Dec { .. } => "dec",
                Ask::Status => "status",
            };
            *statuses.entry((call, event.status())).or_default() += 1;
            keys += event.keys().len();
        }
        let answered: usize =
            statuses.iter().filter(|((_, status), _)| *status == 200).map(|(_, count)| count).sum();
        let Deeds { by_kind, kills, start_slowest, stop_slowest, starts_refused, unclean_stops, not_done } =
            self.deeds;
        format!(
            "faults: {:?}, seed {}, {:.1} minutes, {} operations, {answered} answered (200), {keys} keys in them, \
             {kills} kills, faults {by_kind:?}, {violations} violations\n\
             faults: answers {statuses:?} (0: none)\n\
             faults: slowest start {start_slowest:?}, slowest graceful stop {stop_slowest:?}, \
             {unclean_stops} unclean, {starts_refused} starts refused and repeated, not done {not_done:?}",
            self.plan.shape,
            self.plan.seed,
            self.world.stopwatch.elapsed_secs() / 60.0,
            self.events.len(),
        )
    }
}
