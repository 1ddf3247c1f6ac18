//! Faults on real processes: two sites and three pool servers, a faulty proxy on every link, applications
//! that record every answer, and a judge that checks the record afterwards.
//!
//! `DQKD_FAULTS_MINUTES=30` or `DQKD_FAULTS_SECONDS=90` set the length of a run. `DQKD_FAULTS_SEED=n` repeats
//! the faults and the choices of the applications (not the timing of threads and processes). `DQKD_BIN=FILE`
//! tests another program than the one built with the tests. `DQKD_FAULTS_SITES=3` sets the number of sites,
//! `DQKD_FAULTS_REPLICAS=2` the daemons of each site, behind HAProxy. `DQKD_FAULTS_STORE=postgres` gives each
//! site a Postgres instead of an SQLite file. The runs are ignored by default because they need the whole
//! machine: `tests/run.sh` runs them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod balancer;
mod board;
mod check;
mod client;
mod cluster;
mod database;
mod disk;
mod history;
mod nemesis;
mod outage;
mod proxy;
mod random;
mod replicas;
mod run;
mod schedule;
mod wan;
mod wire;
mod workload;

use std::str::FromStr;
use std::time::Duration;

use cluster::Shape;
use run::{Plan, run};

/// A setting from the environment.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn seed() -> u64 {
    let fresh = || {
        use kme::Random as _;
        let mut bytes = [0; 4];
        kme::OsRandom.fill(&mut bytes).unwrap();
        u64::from(u32::from_be_bytes(bytes))
    };
    setting("DQKD_FAULTS_SEED").unwrap_or_else(fresh)
}

/// The shape that the environment sets; `else_` for what it leaves open.
fn shape(else_: Shape) -> Shape {
    let store: Option<String> = setting("DQKD_FAULTS_STORE");
    let is_postgres = match store.as_deref() {
        None => else_.is_postgres,
        Some("sqlite") => false,
        Some("postgres") => true,
        Some(other) => panic!("DQKD_FAULTS_STORE is neither sqlite nor postgres: {other}"),
    };
    Shape {
        sites: setting("DQKD_FAULTS_SITES").unwrap_or(else_.sites),
        replicas: setting("DQKD_FAULTS_REPLICAS").unwrap_or(else_.replicas),
        is_postgres,
    }
}

fn seconds(else_: u64) -> Duration {
    let minutes = setting("DQKD_FAULTS_MINUTES").map(|minutes: u64| minutes * 60);
    Duration::from_secs(minutes.or_else(|| setting("DQKD_FAULTS_SECONDS")).unwrap_or(else_))
}

const ONE_DAEMON: Shape = Shape { sites: 2, replicas: 1, is_postgres: false };
const TWO_REPLICAS: Shape = Shape { sites: 2, replicas: 2, is_postgres: true };

#[test]
#[ignore = "takes minutes and the whole machine; tests/run.sh runs it"]
fn whatever_fails_no_answered_key_is_lost_or_given_twice() {
    run(Plan {
        seed: seed(),
        lasts: seconds(100),
        shape: shape(ONE_DAEMON),
        ttl: Duration::from_hours(24),
        is_expiring: false,
    });
}

#[test]
#[ignore = "takes minutes and the whole machine; tests/run.sh runs it"]
fn replicas_on_postgres_lose_no_answered_key_and_give_none_twice_whatever_fails() {
    run(Plan {
        seed: seed(),
        lasts: seconds(50),
        shape: shape(TWO_REPLICAS),
        ttl: Duration::from_hours(24),
        is_expiring: false,
    });
}

#[test]
#[ignore = "takes half a minute and the whole machine; tests/run.sh runs it"]
fn a_full_reserve_outlasts_a_cut_link_and_a_stop_loses_no_answered_key() {
    outage::run(Duration::from_secs(setting("DQKD_OUTAGE_SECONDS").unwrap_or(15)));
}

#[test]
#[ignore = "takes the whole machine for half a minute; tests/run.sh runs it"]
fn whatever_fails_no_key_outlives_its_expiry_or_goes_before_it() {
    run(Plan {
        seed: seed(),
        lasts: Duration::from_secs(20),
        shape: shape(ONE_DAEMON),
        ttl: Duration::from_secs(4),
        is_expiring: true,
    });
}

#[test]
#[ignore = "takes the whole machine for a minute and is there for its figures (docs/lab/performance.md)"]
fn keys_over_a_long_line_that_loses_packets_are_the_same_at_both_ends() {
    wan::run();
}

#[test]
#[ignore = "takes the whole machine for half a minute; tests/run.sh runs it"]
fn a_killed_replica_costs_only_what_was_sent_to_it_and_clients_go_on_with_the_other() {
    replicas::kill_under_load(shape(TWO_REPLICAS));
}

#[test]
#[ignore = "takes the whole machine for half a minute; tests/run.sh runs it"]
fn throughput_of_one_replica_and_of_all() {
    let each = Duration::from_secs(setting("DQKD_THROUGHPUT_SECONDS").unwrap_or(2));
    replicas::throughput(shape(TWO_REPLICAS), each);
}
