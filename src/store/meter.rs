//! Counts and times the store's transactions, and the calls that wait for them.

use std::time::Duration;

use tokio::sync::mpsc::WeakSender;

use super::error::StoreError;
use crate::metrics::{
    Counter, Counters, Counts, Histogram, Labels, Reading, Registry, Seconds, Timings, counter, timing,
};

/// Names of jobs. A transaction has the name of its jobs, or [`MIXED`].
const JOBS: [&str; 6] = ["insert", "retrieve", "void", "lease", "return", "sweep"];
/// Name of a transaction with several kinds of jobs.
const MIXED: &str = "mixed";
const ERRORS: [&str; 11] = [
    "full",
    "busy",
    "uncertain",
    "read_only",
    "corrupt",
    "schema",
    "seal",
    "settings",
    "misuse",
    "closed",
    "other",
];

/// The meter of one store, shared by its callers and writers.
#[derive(Debug)]
pub(super) struct Meter {
    calls: Timings,
    transactions: Counters,
    durations: Timings,
    errors: Counters,
    jobs: Histogram<Counts>,
    reruns: Counter,
    by_name: Vec<ByName>,
}

#[derive(Debug)]
struct ByName {
    name: &'static str,
    call: Histogram<Seconds>,
    committed: Counter,
    rolled_back: Counter,
    failed: Counter,
    duration: Histogram<Seconds>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    Committed,
    /// Not a failure: a caller had given up.
    RolledBack,
    Failed(&'a StoreError),
}

impl Default for Meter {
    fn default() -> Self {
        let (calls, transactions, durations, errors) =
            (Timings::default(), Counters::default(), Timings::default(), Counters::default());
        let name = |name: &'static str| {
            let label = || Labels::new([("name", name)]);
            let outcome = |outcome| counter(&transactions, label().and("outcome", outcome));
            ByName {
                name,
                call: if name == MIXED { Histogram::default() } else { timing(&calls, label()) },
                committed: outcome("committed"),
                rolled_back: outcome("rolled_back"),
                failed: outcome("failed"),
                duration: timing(&durations, label()),
            }
        };
        let by_name = JOBS.into_iter().chain([MIXED]).map(name).collect();
        for kind in ERRORS {
            counter(&errors, Labels::new([("kind", kind)]));
        }
        let (jobs, reruns) = (Histogram::default(), Counter::default());
        Self { calls, transactions, durations, errors, jobs, reruns, by_name }
    }
}

impl Meter {
    /// Registers the meter, and the length of `queue`.
    pub(super) fn register<J: Send + 'static>(&self, registry: &mut Registry, queue: WeakSender<J>) {
        let help = "Calls to the store, with their waits";
        registry.register("dqkd_store_call_duration_seconds", help, self.calls.clone());
        let help = "Transactions by the kind of their jobs and their outcome";
        registry.register("dqkd_store_transactions", help, self.transactions.clone());
        let help = "Transactions from their first statement to their end";
        registry.register("dqkd_store_transaction_duration_seconds", help, self.durations.clone());
        registry.register("dqkd_store_jobs_per_commit", "Jobs that shared a commit", self.jobs.clone());
        let help = "Jobs run again in a new transaction, alone or with others";
        registry.register("dqkd_store_job_reruns", help, self.reruns.clone());
        registry.register("dqkd_store_errors", "Failed transactions by their reason", self.errors.clone());
        let waiting = move || {
            let queue = queue.upgrade();
            queue.map_or(0, |queue| queue.max_capacity().saturating_sub(queue.capacity()) as u64)
        };
        let waiting = Reading::gauge(move || vec![(Labels::default(), waiting())]);
        registry.register("dqkd_store_queue_jobs", "Jobs that wait for a writer", waiting);
    }

    /// Notes how long a caller waited for a job.
    pub(super) fn note_call(&self, name: &str, duration: Duration) {
        if let Some(named) = self.named(name) {
            named.call.observe(duration);
        }
    }

    /// Notes the end of a transaction of jobs with these names.
    pub(super) fn note(
        &self,
        names: impl Iterator<Item = &'static str>,
        outcome: Outcome<'_>,
        duration: Duration,
    ) {
        let (mut name, mut jobs) = (MIXED, 0);
        for of_job in names {
            name = if jobs == 0 || name == of_job { of_job } else { MIXED };
            jobs += 1;
        }
        let Some(named) = self.named(name) else { return };
        named.duration.observe(duration);
        match outcome {
            Outcome::Committed => {
                named.committed.inc();
                self.jobs.observe(jobs);
            }
            Outcome::RolledBack => {
                named.rolled_back.inc();
            }
            Outcome::Failed(error) => {
                named.failed.inc();
                counter(&self.errors, Labels::new([("kind", kind_of(error))])).inc();
            }
        }
    }

    /// Notes that `jobs` jobs run again.
    pub(super) fn note_reruns(&self, jobs: usize) {
        self.reruns.inc_by(jobs as u64);
    }

    fn named(&self, name: &str) -> Option<&ByName> {
        self.by_name.iter().find(|named| named.name == name)
    }
}

fn kind_of(error: &StoreError) -> &'static str {
    match error {
        StoreError::Full(_) => "full",
        StoreError::Busy(_) => "busy",
        StoreError::Uncertain(_) => "uncertain",
        StoreError::ReadOnly(_) => "read_only",
        StoreError::Corrupt { .. } => "corrupt",
        StoreError::Schema(_) => "schema",
        StoreError::Seal(_) => "seal",
        StoreError::Settings(_) => "settings",
        StoreError::Misuse(_) => "misuse",
        StoreError::Closed => "closed",
        StoreError::Other(_) => "other",
    }
}
