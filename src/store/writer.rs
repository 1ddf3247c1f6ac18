//! The only writer: one task, one connection, one transaction for all jobs that wait at the same time.
//!
//! A commit with `synchronous = FULL` costs the same for one job as for a hundred, so jobs that queue up
//! while a commit runs share the next one. A caller that goes away cannot break a transaction, since it
//! does not run in the caller's task; a retrieval whose caller has given up before the commit is not carried
//! out, and after that nobody gives up any more (`turn.rs`), so whoever is told "busy" has lost no key.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::error::{RetrieveError, StoreError};
use super::insert::InsertJob;
use super::meter::{Ended, Meter};
use super::ready::{LeaseJob, ReturnJob};
use super::retrieve::{RetrieveJob, Rows};
use super::seal::Sealer;
use super::types::{Inserted, LeasedBlock, Swept, VoidOutcome, Withdrawn};
use super::void::VoidJob;
use super::{sql, sweep};
use crate::kme::{Clock, Key};

/// Jobs that wait at most; more callers wait to queue.
pub(super) const QUEUE_JOBS: usize = 1024;
/// Jobs that share one commit at most.
const GROUP_JOBS: usize = 128;
/// Keys after which a group takes no further job, which bounds its memory and time.
const GROUP_KEYS: usize = 4096;
/// Keys that a leased block is counted as.
const BLOCK_KEYS: usize = 64;

type Reply<T, E = StoreError> = oneshot::Sender<Result<T, E>>;

/// A change to the store and the way back to whom it is for. A job may run more than once, until it commits.
pub(super) enum Job {
    Insert(Box<InsertJob>, Reply<Inserted>),
    Retrieve(Box<RetrieveJob>, Reply<Vec<Key>, RetrieveError>),
    Void(VoidJob, Reply<VoidOutcome>),
    Withdraw(VoidJob, Reply<Withdrawn>),
    Lease(LeaseJob, Reply<Vec<LeasedBlock>>),
    Return(Vec<ReturnJob>, Reply<()>),
    Sweep(u32, Reply<Swept>),
    Stop(oneshot::Sender<()>),
    #[cfg(test)]
    Raw(&'static str, Reply<()>),
}

/// The result of a job, held back until its transaction is committed.
enum Done {
    Insert(Inserted),
    Retrieve(Result<Vec<Key>, RetrieveError>),
    Void(VoidOutcome),
    Withdraw(Withdrawn),
    Lease(Vec<LeasedBlock>),
    Sweep(Swept),
    Nothing,
}

impl Job {
    /// What the job is called in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Insert(..) => "insert",
            Self::Retrieve(..) => "retrieve",
            Self::Void(..) => "void",
            Self::Withdraw(..) => "withdraw",
            Self::Lease(..) => "lease",
            Self::Return(..) => "return",
            Self::Sweep(..) => "sweep",
            Self::Stop(_) => "stop",
            #[cfg(test)]
            Self::Raw(..) => "raw",
        }
    }

    fn keys(&self) -> usize {
        match self {
            Self::Insert(job, _) => job.key_count(),
            Self::Retrieve(job, _) => job.key_ids.len(),
            Self::Void(job, _) => job.key_ids.len(),
            Self::Lease(job, _) => usize::try_from(job.blocks).unwrap_or(usize::MAX) * BLOCK_KEYS,
            _ => 0,
        }
    }

    fn abandoned(&self) -> bool {
        match self {
            Self::Insert(_, reply) => reply.is_closed(),
            Self::Retrieve(job, reply) => reply.is_closed() || job.turn.is_given_up(),
            Self::Void(_, reply) => reply.is_closed(),
            Self::Withdraw(_, reply) => reply.is_closed(),
            Self::Lease(_, reply) => reply.is_closed(),
            Self::Return(_, reply) => reply.is_closed(),
            Self::Sweep(_, reply) => reply.is_closed(),
            Self::Stop(_) => false,
            #[cfg(test)]
            Self::Raw(_, reply) => reply.is_closed(),
        }
    }

    // A caller that is gone does not need its answer, so failed sends are no failures.
    fn succeed(self, done: Done) {
        match (self, done) {
            (Self::Insert(_, reply), Done::Insert(inserted)) => drop(reply.send(Ok(inserted))),
            (Self::Retrieve(_, reply), Done::Retrieve(keys)) => drop(reply.send(keys)),
            (Self::Void(_, reply), Done::Void(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Withdraw(_, reply), Done::Withdraw(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Lease(_, reply), Done::Lease(blocks)) => drop(reply.send(Ok(blocks))),
            (Self::Return(_, reply), Done::Nothing) => drop(reply.send(Ok(()))),
            (Self::Sweep(_, reply), Done::Sweep(swept)) => drop(reply.send(Ok(swept))),
            #[cfg(test)]
            (Self::Raw(_, reply), Done::Nothing) => drop(reply.send(Ok(()))),
            (job, _) => drop(job),
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Insert(_, reply) => drop(reply.send(Err(error))),
            Self::Retrieve(_, reply) => drop(reply.send(Err(error.into()))),
            Self::Void(_, reply) => drop(reply.send(Err(error))),
            Self::Withdraw(_, reply) => drop(reply.send(Err(error))),
            Self::Lease(_, reply) => drop(reply.send(Err(error))),
            Self::Return(_, reply) => drop(reply.send(Err(error))),
            Self::Sweep(_, reply) => drop(reply.send(Err(error))),
            Self::Stop(_) => {}
            #[cfg(test)]
            Self::Raw(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// The state of the writing task.
pub(super) struct Writer {
    pub(super) options: SqliteConnectOptions,
    pub(super) connection: Option<SqliteConnection>,
    pub(super) sealer: Arc<Sealer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) meter: Arc<Meter>,
}

impl Writer {
    /// Works until told to stop or until every sender is gone; then closes the connection, which moves
    /// the log into the database file.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut stopped = None;
        while let Some(first) = queue.recv().await {
            let mut keys = first.keys();
            let mut jobs = vec![first];
            while jobs.len() < GROUP_JOBS && keys < GROUP_KEYS {
                let Ok(job) = queue.try_recv() else { break };
                keys += job.keys();
                jobs.push(job);
            }
            let mut sweeps = false;
            let mut work = Vec::with_capacity(jobs.len());
            for job in jobs {
                match job {
                    Job::Stop(reply) => stopped = Some(reply),
                    job => {
                        sweeps |= matches!(job, Job::Sweep(..));
                        work.push(job);
                    }
                }
            }
            self.settle(work).await;
            if sweeps {
                self.checkpoint().await;
            }
            if stopped.is_some() {
                break;
            }
        }
        queue.close();
        self.close_connection().await;
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
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
        // The first time round claims every retrieval whose caller still waits, so the second commits: clients
        // that keep disconnecting do not hold up the others.
        for _ in 0..2 {
            jobs.retain(|job| !job.abandoned());
            if jobs.is_empty() {
                return Ok(());
            }
            let started = Instant::now();
            let attempt = AssertUnwindSafe(self.attempt(&jobs)).catch_unwind().await;
            let ended = match &attempt {
                Ok(Ok(Some(_))) => Ended::Committed,
                Ok(Ok(None)) => Ended::RolledBack,
                Ok(Err(error)) => Ended::Failed(error),
                Err(_) => Ended::Panicked,
            };
            self.meter.note(jobs.iter().map(Job::name), ended, started.elapsed());
            match attempt {
                Ok(Ok(Some(done))) => {
                    jobs.into_iter().zip(done).for_each(|(job, done)| job.succeed(done));
                    return Ok(());
                }
                Ok(Ok(None)) => self.roll_back().await,
                Ok(Err(error)) => {
                    self.roll_back().await;
                    if matches!(error, StoreError::ReadOnly(_)) {
                        // A connection opened on a read-only file stays so after the file is repaired.
                        self.close_connection().await;
                    }
                    return Err((error, jobs));
                }
                Err(_) => {
                    error!("a panic in the store's writer; its transaction is rolled back");
                    self.connection = None;
                    return Err((StoreError::Other(Arc::new(sqlx::Error::WorkerCrashed)), jobs));
                }
            }
        }
        Ok(())
    }

    /// One transaction. `None`: not committed, because the caller of a retrieval has given up.
    async fn attempt(&mut self, jobs: &[Job]) -> Result<Option<Vec<Done>>, StoreError> {
        let now = self.clock.now();
        let sealer = Arc::clone(&self.sealer);
        let connection = self.begin().await?;
        let mut done = Vec::with_capacity(jobs.len());
        let mut wanted = Vec::new();
        for job in jobs {
            done.push(match job {
                Job::Insert(job, _) => Done::Insert(job.run(connection).await?),
                Job::Void(job, _) => Done::Void(job.run(connection).await?),
                Job::Withdraw(job, _) => Done::Withdraw(job.withdraw(connection, now).await?),
                Job::Lease(job, _) => Done::Lease(job.run(connection, &sealer, now).await?),
                Job::Return(jobs, _) => {
                    for job in jobs {
                        job.run(connection).await?;
                    }
                    Done::Nothing
                }
                Job::Sweep(limit, _) => {
                    Done::Sweep(sweep::run(connection, *limit, now, sealer.current().id).await?)
                }
                Job::Retrieve(job, _) => {
                    wanted.extend_from_slice(&job.key_ids);
                    Done::Nothing
                }
                Job::Stop(_) => Done::Nothing,
                #[cfg(test)]
                Job::Raw(statement, _) => {
                    sqlx::raw_sql(*statement).execute(&mut *connection).await?;
                    Done::Nothing
                }
            });
        }
        let mut rows = Rows::load(connection, &sealer, wanted, now).await?;
        for (job, done) in jobs.iter().zip(&mut done) {
            if let Job::Retrieve(job, _) = job {
                *done = Done::Retrieve(rows.decide(job, &sealer));
            }
        }
        rows.write(connection).await?;
        let mut all_wait = true;
        for job in jobs {
            if let Job::Retrieve(job, _) = job {
                all_wait &= job.turn.claim();
            }
        }
        if !all_wait {
            return Ok(None);
        }
        sqlx::query(sql::COMMIT).execute(&mut *connection).await?;
        Ok(Some(done))
    }

    /// Begins a transaction, on a new connection when there is none or when the old one cannot.
    async fn begin(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        if let Some(connection) = &mut self.connection {
            match sqlx::query(sql::BEGIN).execute(connection).await.map_err(StoreError::from) {
                Ok(_) => {}
                Err(error) if error.hits_every_job() => return Err(error),
                Err(error) => {
                    warn!(%error, "the database connection is replaced");
                    self.connection = None;
                }
            }
        }
        if self.connection.is_none() {
            let mut fresh = self.options.connect().await?;
            sqlx::query(sql::BEGIN).execute(&mut fresh).await?;
            self.connection = Some(fresh);
        }
        self.connection.as_mut().ok_or(StoreError::Closed)
    }

    /// Ends a transaction without a trace. SQLite ends it by itself after some failures (a full disk), and
    /// then refuses this statement; a connection that is still inside one is found out by the next `BEGIN`.
    async fn roll_back(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = sqlx::query(sql::ROLLBACK).execute(connection).await
        {
            debug!(%error, "no transaction was left to roll back");
        }
    }

    async fn close_connection(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            warn!(%error, "the database connection did not close cleanly");
        }
    }

    async fn checkpoint(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = sqlx::query(sql::CHECKPOINT).execute(connection).await
        {
            warn!(%error, "the write-ahead log could not be moved into the database file");
        }
    }
}
