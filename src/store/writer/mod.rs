//! The writer: a task with a connection, and one transaction for all jobs that wait at the same time.
//!
//! A commit to disk costs the same for one job as for a hundred, so jobs that arrive during a commit share
//! the next one. Transactions run in the writer's task, so a caller that goes away breaks none. A retrieval
//! whose caller gives up before the commit is not carried out; after that, nobody can give up
//! (`commit_race.rs`). So whoever is told "busy" has lost no key.
//!
//! SQLite has one writer. Postgres has several, here and in other daemons; locks keep them apart
//! (`verbs/locks.rs`). A transaction that conflicts with another runs again.

pub(crate) mod commit;
mod commit_race;
mod jobs;

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use kme::{Clock, Random};
use sqlx::Connection;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use self::commit::Mark;
pub(crate) use self::commit_race::{CommitRace, GiveUpOnDrop};
pub(crate) use self::jobs::{Answer, Job, Queue};
use super::connection::{Address, Dialect, Link};
use super::error::StoreError;
use super::meter::Meter;
use super::record::Prefix;
use super::sealing::{SealError, Sealer};
use super::verbs::{Needs, Records};

/// Writers of one store on Postgres: while one waits for a commit to reach the disk, another prepares the
/// next.
pub(crate) const POSTGRES_WRITERS: usize = 2;
/// Most runs of one transaction.
const RUNS_MAX: u32 = 5;
/// No run begins later than this after the first one began.
const RERUN_UNTIL: Duration = Duration::from_secs(6);
/// Longest time for a server to do a transaction up to its COMMIT. (SQLite itself bounds each wait.)
const WORK_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest time for a server to do a COMMIT.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to find out whether a COMMIT took place. Longer than a server keeps a silent transaction.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);
/// Longest time for a ROLLBACK, or to close a connection.
const PARTING_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the write-ahead log is emptied, also under load. (The sweep is a job each second.)
const EMPTY_LOG_EVERY: Duration = Duration::from_secs(10);
/// A transaction that takes longer is logged.
const SLOW: Duration = Duration::from_secs(1);

/// What the writers of a store share.
#[derive(Clone)]
pub(crate) struct WriterParts {
    pub(crate) address: Arc<Address>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) meter: Arc<Meter>,
}

/// The state of a writing task.
pub(crate) struct Writer {
    parts: WriterParts,
    link: Option<Link>,
    mark: Mark,
    /// When the write-ahead log was last emptied.
    emptied_at: Instant,
}

/// What became of one transaction.
pub(crate) enum Ended {
    /// Committed, or without a change.
    Committed,
    /// Not committed, because the caller of a retrieval gave up.
    GivenUp,
    /// Not committed, and may succeed when it runs again.
    Hindered(StoreError),
    Failed(StoreError),
}

impl Writer {
    pub(crate) fn new(parts: WriterParts, link: Option<Link>) -> Result<Self, SealError> {
        let mark = Mark::draw(&*parts.random)?;
        Ok(Self { parts, link, mark, emptied_at: Instant::now() })
    }

    /// Works until told to stop or until every sender is gone. Then closes the connection, which on SQLite
    /// moves the log into the database file.
    pub(crate) async fn run(mut self, queue: Arc<Queue>) {
        while let Some(jobs) = queue.next_group().await {
            self.settle(jobs).await;
            self.empty_log().await;
        }
        self.close_link().await;
    }

    /// Carries out `jobs` in one transaction and answers them. If it fails and one of them may be the reason,
    /// each gets its own transaction, so that no job fails for another.
    async fn settle(&mut self, jobs: Vec<Job>) {
        let Err((error, jobs)) = self.settle_together(jobs).await else { return };
        if jobs.len() < 2 || error.hits_every_job() {
            for job in jobs {
                job.fail(error.clone());
            }
            return;
        }
        self.parts.meter.note_reruns(jobs.len());
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
        // The first run claims every retrieval whose caller still waits, so clients that keep disconnecting
        // cannot stop the second one.
        for run in 1.. {
            jobs.retain(|job| !job.is_abandoned());
            if jobs.is_empty() {
                return Ok(());
            }
            let began = Instant::now();
            let ended = AssertUnwindSafe(self.attempt(&mut jobs)).catch_unwind().await.unwrap_or_else(|_| {
                error!("panic in the store's writer; its transaction is rolled back");
                self.link = None;
                Ended::Failed(StoreError::Other(Arc::new(sqlx::Error::WorkerCrashed)))
            });
            self.parts.meter.note(jobs.iter().map(Job::name), &ended, began.elapsed());
            let took = started.elapsed();
            if took > SLOW {
                info!(
                    jobs = jobs.len(),
                    run,
                    duration_ms = took.as_millis(),
                    "slow transaction of the store"
                );
            }
            match ended {
                Ended::Committed => {
                    for job in jobs {
                        job.succeed();
                    }
                    return Ok(());
                }
                Ended::GivenUp => self.roll_back().await,
                Ended::Hindered(error) => {
                    self.roll_back().await;
                    if run >= RUNS_MAX || took > RERUN_UNTIL {
                        return Err((error, jobs));
                    }
                    self.parts.meter.note_reruns(jobs.len());
                    debug!(%error, run, "repeating a transaction");
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
    async fn attempt(&mut self, jobs: &mut [Job]) -> Ended {
        let now = self.parts.clock.now();
        let link = match self.link.take() {
            Some(link) => link,
            None => match self.parts.address.connect().await {
                Ok(link) => link,
                Err(error) => return Ended::Failed(error),
            },
        };
        let link = self.link.insert(link);
        let dialect = link.dialect();
        let begun = commit::begin(link, &mut self.mark, &*self.parts.random, now);
        if let Err(error) = limited(dialect, WORK_TIMEOUT, begun).await {
            if error.hits_every_job() && !error.ends_the_connection() {
                return self.not_committed(error).await;
            }
            // Lost, or still inside an earlier transaction.
            info!(%error, "replacing the database connection");
            self.link = None;
            return Ended::Hindered(error);
        }
        let work = carry_out(link, &self.parts.sealer, jobs, &*self.parts.clock);
        let is_changed = match limited(dialect, WORK_TIMEOUT, work).await {
            Ok(is_changed) => is_changed,
            Err(error) => return self.not_committed(error).await,
        };
        if !is_changed {
            // Without a COMMIT there is no wait for the disk.
            self.roll_back().await;
            return Ended::Committed;
        }
        // Every job claims, even after one that could not.
        if jobs.iter().filter(|job| !job.claim()).count() > 0 {
            return Ended::GivenUp;
        }
        match limited(dialect, COMMIT_TIMEOUT, commit::commit(link)).await {
            Ok(()) => Ended::Committed,
            Err(error) if error.proves_no_commit() => self.not_committed(error).await,
            Err(error) => self.resolve(dialect, error).await,
        }
    }

    /// After a transaction that failed before its COMMIT, or whose COMMIT was refused.
    async fn not_committed(&mut self, error: StoreError) -> Ended {
        if error.ends_the_connection() {
            self.link = None;
            return Ended::Hindered(error);
        }
        if matches!(error, StoreError::ReadOnly(_)) {
            // A connection that was opened on a read-only file stays read-only.
            self.close_link().await;
        }
        if error.passes_with_a_rerun() { Ended::Hindered(error) } else { Ended::Failed(error) }
    }

    /// After a COMMIT whose answer was lost: finds out whether it took place.
    async fn resolve(&mut self, dialect: Dialect, error: StoreError) -> Ended {
        if dialect == Dialect::Sqlite {
            return Ended::Failed(error.into_uncertain());
        }
        self.link = None;
        warn!(%error, "the database was lost during a commit; finding out whether the commit took place");
        let deadline = Instant::now() + RESOLVE_TIMEOUT;
        while Instant::now() < deadline {
            match self.ask().await {
                Ok(true) => {
                    info!("the commit took place");
                    return Ended::Committed;
                }
                Ok(false) => {
                    info!("the commit did not take place; its jobs run again");
                    return Ended::Hindered(error);
                }
                Err(error) => {
                    debug!(%error, "still finding out whether the commit took place");
                    self.link = None;
                    sleep(RESOLVE_PAUSE).await;
                }
            }
        }
        error!("could not find out whether a commit took place; its callers get an error that says so");
        // The old transaction may still hold the mark, and the next one would wait for it.
        if let Ok(mark) = Mark::draw(&*self.parts.random) {
            self.mark = mark;
        }
        Ended::Failed(error.into_uncertain())
    }

    async fn ask(&mut self) -> Result<bool, StoreError> {
        let mut link = self.parts.address.connect().await?;
        let dialect = link.dialect();
        let asked = commit::is_committed(&mut link, &self.mark, self.parts.clock.now());
        let committed = limited(dialect, WORK_TIMEOUT, asked).await?;
        self.link = Some(link);
        Ok(committed)
    }

    /// Rolls the transaction back. After some failures (a full disk) SQLite has done so itself and refuses
    /// this statement. A connection that is still inside a transaction fails at the next BEGIN.
    async fn roll_back(&mut self) {
        let Some(link) = &mut self.link else { return };
        let dialect = link.dialect();
        let rolled_back = async {
            sqlx::raw_sql("ROLLBACK").execute(&mut **link).await?;
            Ok(())
        };
        if let Err(error) = limited(dialect, PARTING_TIMEOUT, rolled_back).await {
            debug!(%error, "there was no transaction to roll back");
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

    /// From time to time, moves the write-ahead log into the database file and empties it. Otherwise it keeps what
    /// was erased until that is overwritten. Postgres needs no such call.
    async fn empty_log(&mut self) {
        let Some(link) = self.link.as_mut().filter(|link| link.dialect() == Dialect::Sqlite) else { return };
        if self.emptied_at.elapsed() < EMPTY_LOG_EVERY {
            return;
        }
        self.emptied_at = Instant::now();
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut **link).await {
            warn!(%error, "the write-ahead log could not be moved into the database file");
        }
    }
}

/// Carries out `jobs` in a transaction: retrievals last, all at once. Returns whether anything changed.
async fn carry_out(
    link: &mut Link,
    sealer: &Sealer,
    jobs: &mut [Job],
    clock: &dyn Clock,
) -> Result<bool, StoreError> {
    let (mut needs, mut wanted, mut has_changes) = (Needs::default(), BTreeSet::new(), false);
    for job in &*jobs {
        match job {
            Job::Retrieve(retrieval) => wanted.extend(retrieval.asked().prefixes()),
            Job::Change(change) => {
                has_changes = true;
                change.lock(&mut needs);
            }
        }
    }
    if has_changes {
        // Retrievals alone lock their records when they load them.
        needs.prefixes(wanted.iter().copied());
        needs.lock(link).await?;
    }
    // After the waits for locks, in which keys may have expired.
    let now = clock.now();
    let mut is_changed = false;
    for job in &mut *jobs {
        if let Job::Change(change) = job {
            is_changed |= change.run(link, sealer, now).await?;
        }
    }
    if !wanted.is_empty() {
        let wanted: Vec<Prefix> = wanted.into_iter().collect();
        let mut records = Records::load(link, sealer, &wanted, clock).await?;
        for job in jobs {
            if let Job::Retrieve(retrieval) = job {
                retrieval.decide(&mut records);
            }
        }
        records.write(link).await?;
        is_changed |= records.is_changed();
    }
    Ok(is_changed)
}

/// Does `work`, on Postgres within `limit`. If it takes longer, its connection must be dropped, which
/// [`StoreError::ends_the_connection`] says of the error.
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
