//! Faults on real processes: two sites and three pool servers, a proxy with faults on every link, applications
//! that write down every answer, and a judge who reads that afterwards.
//!
//! `DQKD_FAULTS_MINUTES=30` or `DQKD_FAULTS_SECONDS=90` say how long, `DQKD_FAULTS_SEED=n` repeats the faults
//! and the choices of the applications (not the timing of threads and processes), `DQKD_BIN=FILE` takes another
//! program than the one built with the tests, `DQKD_FAULTS_SITES=3` more sites. The runs are ignored by default
//! because they want the machine to themselves: `tests/run.sh` runs them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits for processes by the real clock"
)]

mod board;
mod check;
mod client;
mod cluster;
mod disk;
mod history;
mod nemesis;
mod outage;
mod proxy;
mod random;
mod run;
mod schedule;
#[path = "../it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests in `it` use the rest")]
mod support;
mod wan;
mod wire;
mod workload;

use std::str::FromStr;
use std::time::Duration;

use run::{Plan, run};

/// A number of the environment.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn seed() -> u64 {
    let fresh = || {
        use dqkd::kme::Random as _;
        let mut bytes = [0; 4];
        dqkd::kme::OsRandom.fill(&mut bytes).unwrap();
        u64::from(u32::from_be_bytes(bytes))
    };
    setting("DQKD_FAULTS_SEED").unwrap_or_else(fresh)
}

#[test]
#[ignore = "takes minutes and the whole machine; tests/run.sh runs it"]
fn whatever_fails_no_answered_key_is_lost_or_given_twice() {
    let minutes = setting("DQKD_FAULTS_MINUTES").map(|minutes: u64| minutes * 60);
    let seconds = minutes.or_else(|| setting("DQKD_FAULTS_SECONDS")).unwrap_or(100);
    run(Plan {
        seed: seed(),
        lasts: Duration::from_secs(seconds),
        sites: setting("DQKD_FAULTS_SITES").unwrap_or(2),
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
        sites: 2,
        ttl: Duration::from_secs(4),
        is_expiring: true,
    });
}

#[test]
#[ignore = "takes the whole machine for a minute and is there for its figures (docs/performance.md)"]
fn keys_over_a_long_line_that_loses_packets_are_the_same_at_both_ends() {
    wan::run();
}
