//! Counts and times the store's transactions, and the calls that wait for them.

use std::time::Duration;

use tokio::sync::mpsc::WeakSender;

use super::error::StoreError;
use super::writer::Ended;
use crate::metrics::{
    Counter, Counters, Counts, Histogram, Labels, Reading, Registry, Timings, counter, timing,
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
}

fn by_name(name: &'static str) -> Labels {
    Labels::new([("name", name)])
}

fn by_kind(kind: &'static str) -> Labels {
    Labels::new([("kind", kind)])
}

impl Default for Meter {
    /// Shows every series from the start.
    fn default() -> Self {
        let (calls, transactions, durations, errors) =
            (Timings::default(), Counters::default(), Timings::default(), Counters::default());
        for name in JOBS.into_iter().chain([MIXED]) {
            timing(&durations, by_name(name));
            for outcome in ["committed", "rolled_back", "failed"] {
                counter(&transactions, by_name(name).and("outcome", outcome));
            }
        }
        for name in JOBS {
            timing(&calls, by_name(name));
        }
        for kind in ERRORS {
            counter(&errors, by_kind(kind));
        }
        let (jobs, reruns) = (Histogram::default(), Counter::default());
        Self { calls, transactions, durations, errors, jobs, reruns }
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
    pub(super) fn note_call(&self, name: &'static str, duration: Duration) {
        timing(&self.calls, by_name(name)).observe(duration);
    }

    /// Notes the end of a transaction of jobs with these names.
    pub(super) fn note(&self, names: impl Iterator<Item = &'static str>, ended: &Ended, duration: Duration) {
        let (mut name, mut jobs) = (MIXED, 0);
        for of_job in names {
            name = if jobs == 0 || name == of_job { of_job } else { MIXED };
            jobs += 1;
        }
        timing(&self.durations, by_name(name)).observe(duration);
        let outcome = match ended {
            Ended::Committed => {
                self.jobs.observe(jobs);
                "committed"
            }
            Ended::GivenUp => "rolled_back",
            Ended::Hindered(error) | Ended::Failed(error) => {
                counter(&self.errors, by_kind(kind_of(error))).inc();
                "failed"
            }
        };
        counter(&self.transactions, by_name(name).and("outcome", outcome)).inc();
    }

    /// Notes that `jobs` jobs run again.
    pub(super) fn note_reruns(&self, jobs: usize) {
        self.reruns.inc_by(jobs as u64);
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
