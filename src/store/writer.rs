//! A writer: a task with a connection, and one transaction for all jobs that wait at the same time.
//!
//! A commit to disk costs the same for one job as for a hundred, so jobs that queue up while a commit runs share
//! the next one. A caller that goes away cannot break a transaction, since it does not run in the caller's task; a
//! retrieval whose caller has given up before the commit is not carried out, and after that nobody gives up any
//! more (`turn.rs`), so whoever is told "busy" has lost no key.
//!
//! SQLite has one writer. On Postgres there are several, here and in other daemons, which keep out of each other's
//! way by locks (`locks.rs`); a transaction that another one got in the way of is run again.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use kme::{Clock, Random, Timestamp};
use sqlx::Connection;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::commit::{self, Mark};
use super::connect::Address;
use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::jobs::{Done, Job, Queue};
use super::known::KnownBatches;
use super::meter::{Meter, Outcome};
use super::retrieve::Rows;
use super::seal::Sealer;
use super::types::Inserted;
use super::{locks, sql};

/// Writers of one store on Postgres: while one waits for a commit to reach the disk, another prepares the next.
pub(super) const POSTGRES_WRITERS: usize = 2;
/// How often a transaction that others got in the way of is run.
const RUNS_MAX: u32 = 5;
/// No run begins later than this after the first one.
const RERUN_UNTIL: Duration = Duration::from_secs(6);
/// What a server may take for a transaction up to its COMMIT. (SQLite bounds each wait by itself.)
const WORK_TIMEOUT: Duration = Duration::from_secs(8);
/// What a server may take for a COMMIT.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long is tried to find out what became of a COMMIT: longer than a server keeps a silent transaction.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);
/// What a courtesy to the server may take: ROLLBACK, or taking leave.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);
/// Most groups that go the long way after one that did not suit the short one.
const LONG_WAYS_MAX: u32 = 64;
/// A transaction that takes longer is told in the log.
const SLOW: Duration = Duration::from_secs(1);

/// The state of a writing task.
pub(super) struct Writer {
    pub(super) address: Arc<Address>,
    pub(super) link: Option<Link>,
    pub(super) mark: Mark,
    pub(super) sealer: Arc<Sealer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) meter: Arc<Meter>,
    pub(super) known: KnownBatches,
    pub(super) shortcut: Shortcut,
    /// The last sweep found nothing more to erase.
    pub(super) is_swept: bool,
}

/// Whether retrievals are tried the short way (`super::retrieve`). Whoever asks for keys that it does not suit costs
/// one transaction more at first, and fewer and fewer.
#[derive(Default)]
pub(super) struct Shortcut {
    /// Groups that still go the long way.
    left: u32,
    /// How many will, next time.
    penalty: u32,
}

impl Shortcut {
    fn is_open_for(&mut self, jobs: &[Job]) -> bool {
        let mut retrievals = jobs.iter().filter_map(Job::takes_for_good).peekable();
        if retrievals.peek().is_none() || !retrievals.all(|for_good| for_good) {
            return false;
        }
        let is_open = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_open
    }

    fn did_suit(&mut self, did: bool) {
        self.penalty = if did { self.penalty / 2 } else { (2 * self.penalty + 1).min(LONG_WAYS_MAX) };
        if !did {
            // The group itself comes again.
            self.left = self.penalty;
        }
    }
}

/// What became of one transaction.
enum Ended {
    Committed(Vec<Done>),
    /// Not committed, because the caller of a retrieval has given up.
    GivenUp,
    /// Not committed, because the short way did not suit these retrievals.
    Unsuited,
    /// Not committed, and may go better when it is run again.
    Hindered(StoreError),
    Failed(StoreError),
}

impl Ended {
    fn outcome(&self) -> Outcome<'_> {
        match self {
            Self::Committed(_) => Outcome::Committed,
            Self::GivenUp | Self::Unsuited => Outcome::RolledBack,
            Self::Hindered(error) | Self::Failed(error) => Outcome::Failed(error),
        }
    }
}

impl Writer {
    /// Works until told to stop or until every sender is gone; then closes the connection, which on SQLite moves
    /// the log into the database file.
    pub(super) async fn run(mut self, queue: Arc<Queue>) {
        while let Some(jobs) = queue.next_group().await {
            self.settle(jobs).await;
            if std::mem::take(&mut self.is_swept) {
                self.checkpoint().await;
            }
        }
        self.close_link().await;
    }

    /// Carries out `jobs` in one transaction and answers each of them. When that fails for a reason that
    /// may lie with one of them, each gets a transaction of its own, so that no job fails for another.
    async fn settle(&mut self, jobs: Vec<Job>) {
        let Err((error, jobs)) = self.settle_together(jobs).await else { return };
        if jobs.len() < 2 || error.hits_every_job() {
            for job in jobs {
                job.fail(error.clone());
            }
            return;
        }
        self.meter.note_reruns(jobs.len());
        for job in jobs {
            if let Err((error, jobs)) = self.settle_together(vec![job]).await {
                for job in jobs {
                    job.fail(error.clone());
                }
            }
        }
    }

    async fn settle_together(&mut self, mut jobs: Vec<Job>) -> Result<(), (StoreError, Vec<Job>)> {
        let started = Instant::now();
        // The first time round claims every retrieval whose caller still waits, so the second commits: clients
        // that keep disconnecting do not hold up the others.
        for run in 1.. {
            jobs.retain(|job| !job.abandoned());
            if jobs.is_empty() {
                return Ok(());
            }
            let began = Instant::now();
            let ended = AssertUnwindSafe(self.attempt(&jobs)).catch_unwind().await.unwrap_or_else(|_| {
                error!("a panic in the store's writer; its transaction is rolled back");
                self.link = None;
                Ended::Failed(StoreError::Other(Arc::new(sqlx::Error::WorkerCrashed)))
            });
            self.meter.note(jobs.iter().map(Job::name), ended.outcome(), began.elapsed());
            let took = started.elapsed();
            if took > SLOW {
                info!(
                    jobs = jobs.len(),
                    run,
                    duration_ms = took.as_millis(),
                    "a slow transaction of the store"
                );
            }
            match ended {
                Ended::Committed(done) => {
                    for (job, done) in jobs.iter().zip(&done) {
                        match (job, done) {
                            (Job::Insert(job, _), Done::Insert(Inserted::Stored)) => {
                                self.known.add(job.facts());
                            }
                            (_, Done::Sweep(swept)) => self.is_swept |= !swept.any(),
                            _ => {}
                        }
                    }
                    jobs.into_iter().zip(done).for_each(|(job, done)| job.succeed(done));
                    return Ok(());
                }
                Ended::GivenUp | Ended::Unsuited => self.roll_back().await,
                Ended::Hindered(error) => {
                    self.roll_back().await;
                    if run >= RUNS_MAX || took > RERUN_UNTIL {
                        return Err((error, jobs));
                    }
                    self.meter.note_reruns(jobs.len());
                    debug!(%error, run, "a transaction is run again");
                }
                Ended::Failed(error) => {
                    self.roll_back().await;
                    return Err((error, jobs));
                }
            }
        }
        Ok(())
    }

    /// One transaction, from BEGIN to its certain end.
    async fn attempt(&mut self, jobs: &[Job]) -> Ended {
        let now = self.clock.now();
        if self.link.is_none() {
            match self.address.connect().await {
                Ok(link) => self.link = Some(link),
                Err(error) => return Ended::Failed(error),
            }
        }
        let Some(link) = &mut self.link else { return Ended::Failed(StoreError::Closed) };
        let dialect = link.dialect();
        let begun = commit::begin(link, &mut self.mark, &*self.random, now);
        if let Err(error) = limited(dialect, WORK_TIMEOUT, begun).await {
            if error.hits_every_job() && !error.ends_the_connection() {
                return self.not_committed(error).await;
            }
            // Lost, or still inside a transaction of before.
            info!(%error, "the database connection is replaced");
            self.link = None;
            return Ended::Hindered(error);
        }
        let known = self.shortcut.is_open_for(jobs).then_some(&mut self.known);
        let is_short = known.is_some();
        let work = carry_out(link, &self.sealer, known, jobs, now);
        let work = match limited(dialect, WORK_TIMEOUT, work).await {
            Ok(Some(work)) => work,
            Ok(None) => {
                self.shortcut.did_suit(false);
                return Ended::Unsuited;
            }
            Err(error) => return self.not_committed(error).await,
        };
        if is_short {
            self.shortcut.did_suit(true);
        }
        if !work.changed {
            // Nothing to keep, so nothing to wait for the disk for.
            self.roll_back().await;
            return Ended::Committed(work.done);
        }
        // All of them claim, not only those up to the first that cannot.
        if jobs.iter().filter(|job| !job.claim()).count() > 0 {
            return Ended::GivenUp;
        }
        match limited(dialect, COMMIT_TIMEOUT, commit::commit(link)).await {
            Ok(()) => Ended::Committed(work.done),
            Err(error) if error.proves_no_commit() => self.not_committed(error).await,
            Err(error) => self.resolve(dialect, error, work.done).await,
        }
    }

    /// For a transaction that failed before its COMMIT, or whose COMMIT was refused.
    async fn not_committed(&mut self, error: StoreError) -> Ended {
        if error.ends_the_connection() {
            self.link = None;
            return Ended::Hindered(error);
        }
        if matches!(error, StoreError::ReadOnly(_)) {
            // A connection opened on a read-only file stays so after the file is repaired.
            self.close_link().await;
        }
        if error.passes_with_a_rerun() { Ended::Hindered(error) } else { Ended::Failed(error) }
    }

    /// For a COMMIT whose answer nobody saw: whether it took place.
    async fn resolve(&mut self, dialect: Dialect, error: StoreError, done: Vec<Done>) -> Ended {
        if dialect == Dialect::Sqlite {
            return Ended::Failed(error.into_uncertain());
        }
        self.link = None;
        warn!(%error, "the database was lost during a commit; finding out what became of it");
        let deadline = Instant::now() + RESOLVE_TIMEOUT;
        while Instant::now() < deadline {
            match self.ask().await {
                Ok(true) => {
                    info!("the commit took place");
                    return Ended::Committed(done);
                }
                Ok(false) => {
                    info!("the commit did not take place; its jobs are run again");
                    return Ended::Hindered(error);
                }
                Err(error) => {
                    debug!(%error, "what became of the commit is not known yet");
                    self.link = None;
                    sleep(RESOLVE_PAUSE).await;
                }
            }
        }
        error!("what became of a commit could not be found out; its callers are told so");
        // The old transaction may be there still, and would hold up the next one at its mark.
        if let Ok(mark) = Mark::draw(&*self.random) {
            self.mark = mark;
        }
        Ended::Failed(error.into_uncertain())
    }

    async fn ask(&mut self) -> Result<bool, StoreError> {
        let mut link = self.address.connect().await?;
        let dialect = link.dialect();
        let asked = commit::is_committed(&mut link, &self.mark, self.clock.now());
        let committed = limited(dialect, WORK_TIMEOUT, asked).await?;
        self.link = Some(link);
        Ok(committed)
    }

    /// Ends a transaction without a trace. SQLite ends it by itself after some failures (a full disk), and
    /// then refuses this statement; a connection that is still inside one is found out by the next `BEGIN`.
    async fn roll_back(&mut self) {
        let Some(link) = &mut self.link else { return };
        let dialect = link.dialect();
        let rolled_back = async {
            sqlx::raw_sql(sql::ROLLBACK).execute(&mut **link).await?;
            Ok(())
        };
        if let Err(error) = limited(dialect, PARTING_TIMEOUT, rolled_back).await {
            debug!(%error, "no transaction was left to roll back");
            if dialect == Dialect::Postgres {
                self.link = None;
            }
        }
    }

    async fn close_link(&mut self) {
        let Some(link) = self.link.take() else { return };
        let dialect = link.dialect();
        let closed = async { Ok(link.into_inner().close().await?) };
        if let Err(error) = limited(dialect, PARTING_TIMEOUT, closed).await {
            warn!(%error, "the database connection did not close cleanly");
        }
    }

    /// Moves the write-ahead log into the database file; Postgres does so by itself.
    async fn checkpoint(&mut self) {
        if let Some(link) = &mut self.link
            && link.dialect() == Dialect::Sqlite
            && let Err(error) = sqlx::query(sql::CHECKPOINT).execute(&mut **link).await
        {
            warn!(%error, "the write-ahead log could not be moved into the database file");
        }
    }
}

/// What a transaction did, before it is committed.
struct Work {
    done: Vec<Done>,
    changed: bool,
}

/// Carries out `jobs` inside a transaction: retrievals last and all at once. With `known` they go the short way;
/// `None` when it did not suit them, and the transaction is to be rolled back.
async fn carry_out(
    link: &mut Link,
    sealer: &Sealer,
    known: Option<&mut KnownBatches>,
    jobs: &[Job],
    now: Timestamp,
) -> Result<Option<Work>, StoreError> {
    let is_short = known.is_some();
    locks::take(link, jobs, is_short).await?;
    let mut done = Vec::with_capacity(jobs.len());
    let mut wanted = Vec::new();
    for job in jobs {
        if let Job::Retrieve(job, _) = job {
            wanted.extend_from_slice(&job.key_ids);
        }
        done.push(job.carry_out(link, sealer, now).await?);
    }
    let mut changed = done.iter().any(Done::is_change);
    if !wanted.is_empty() {
        let mut rows = match known {
            Some(known) => Rows::take_fresh(link, sealer, known, wanted, now).await?,
            None => Rows::load(link, sealer, wanted, now).await?,
        };
        let mut are_served = true;
        for (job, done) in jobs.iter().zip(&mut done) {
            if let Job::Retrieve(job, _) = job {
                let keys = rows.decide(job, sealer);
                are_served &= keys.is_ok();
                *done = Done::Retrieve(keys);
            }
        }
        if is_short && !(are_served && rows.is_what_was_taken()) {
            return Ok(None);
        }
        rows.write(link).await?;
        changed |= rows.is_changed();
    }
    Ok(Some(Work { done, changed }))
}

/// `work` within `limit` where a server is waited for. When it takes longer, the connection it used is to be
/// dropped: [`StoreError::ends_the_connection`] says so of the error.
async fn limited<T>(
    dialect: Dialect,
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match dialect {
        Dialect::Sqlite => work.await,
        Dialect::Postgres => timeout(limit, work).await.unwrap_or(Err(StoreError::Busy(None))),
    }
}
