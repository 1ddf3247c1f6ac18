//! Changes to the store on their way to a writer, and the answers on their way back.

use std::sync::{Arc, Mutex, PoisonError};

use kme::{Key, Timestamp};
use tokio::sync::{mpsc, oneshot};

use super::dialect::Link;
use super::error::{RetrieveError, StoreError};
use super::insert::InsertJob;
use super::ready::{LeaseJob, Leased, ReturnJob};
use super::retrieve::RetrieveJob;
use super::seal::Sealer;
use super::sweep;
use super::types::{Inserted, LeasedBlock, Swept, VoidOutcome, Withdrawn};
use super::void::VoidJob;

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
pub(super) enum Done {
    Insert(Inserted),
    Retrieve(Result<Vec<Key>, RetrieveError>),
    Void(VoidOutcome),
    Withdraw(Withdrawn),
    Lease(Leased),
    Sweep(Swept),
    Return,
    Nothing,
}

impl Done {
    /// Whether there is anything to commit. For retrievals the rows tell.
    pub(super) fn is_change(&self) -> bool {
        match self {
            Self::Insert(inserted) => *inserted == Inserted::Stored,
            Self::Lease(leased) => leased.took_any,
            Self::Sweep(swept) => swept.any(),
            Self::Void(_) | Self::Withdraw(_) | Self::Return => true,
            Self::Retrieve(_) | Self::Nothing => false,
        }
    }
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

    /// Whether it is a retrieval, and of the kind that [`super::retrieve::Rows::take_fresh`] may serve.
    pub(super) fn takes_for_good(&self) -> Option<bool> {
        match self {
            Self::Retrieve(job, _) => Some(job.is_once_for_all()),
            _ => None,
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

    /// Does its part in a transaction, but for retrievals, which are decided together.
    pub(super) async fn carry_out(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        Ok(match self {
            Self::Insert(job, _) => Done::Insert(job.run(link).await?),
            Self::Void(job, _) => Done::Void(job.run(link).await?),
            Self::Withdraw(job, _) => Done::Withdraw(job.withdraw(link, now).await?),
            Self::Lease(job, _) => Done::Lease(job.run(link, sealer, now).await?),
            Self::Return(jobs, _) => {
                for job in jobs {
                    job.run(link).await?;
                }
                Done::Return
            }
            Self::Sweep(limit, _) => Done::Sweep(sweep::run(link, *limit, now, sealer.current().id).await?),
            Self::Retrieve(..) | Self::Stop(_) => Done::Nothing,
            #[cfg(test)]
            Self::Raw(statement, _) => {
                sqlx::raw_sql(*statement).execute(&mut **link).await?;
                Done::Return
            }
        })
    }

    /// Right before a commit: `false` when the caller has given up, so it must not take place.
    pub(super) fn claim(&self) -> bool {
        match self {
            Self::Retrieve(job, _) => job.turn.claim(),
            _ => true,
        }
    }

    pub(super) fn abandoned(&self) -> bool {
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
    pub(super) fn succeed(self, done: Done) {
        match (self, done) {
            (Self::Insert(_, reply), Done::Insert(inserted)) => drop(reply.send(Ok(inserted))),
            (Self::Retrieve(_, reply), Done::Retrieve(keys)) => drop(reply.send(keys)),
            (Self::Void(_, reply), Done::Void(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Withdraw(_, reply), Done::Withdraw(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Lease(_, reply), Done::Lease(leased)) => drop(reply.send(Ok(leased.blocks))),
            (Self::Return(_, reply), Done::Return) => drop(reply.send(Ok(()))),
            (Self::Sweep(_, reply), Done::Sweep(swept)) => drop(reply.send(Ok(swept))),
            #[cfg(test)]
            (Self::Raw(_, reply), Done::Return) => drop(reply.send(Ok(()))),
            (job, _) => drop(job),
        }
    }

    pub(super) fn fail(self, error: StoreError) {
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

/// Jobs that wait, for all writers.
pub(super) struct Queue {
    jobs: tokio::sync::Mutex<mpsc::Receiver<Job>>,
    /// Dropped with the queue, when the last writer has ended: that tells whoever asked them to stop.
    stopped: Mutex<Option<oneshot::Sender<()>>>,
}

impl Queue {
    pub(super) fn new() -> (mpsc::Sender<Job>, Arc<Self>) {
        let (sender, jobs) = mpsc::channel(QUEUE_JOBS);
        (sender, Arc::new(Self { jobs: tokio::sync::Mutex::new(jobs), stopped: Mutex::default() }))
    }

    /// The jobs that wait now, once there is one; `None` when no more will come.
    pub(super) async fn next_group(&self) -> Option<Vec<Job>> {
        let mut queue = self.jobs.lock().await;
        let mut next = Some(queue.recv().await?);
        let (mut keys, mut jobs) = (0, Vec::new());
        while let Some(job) = next {
            match job {
                Job::Stop(reply) => {
                    queue.close();
                    *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
                }
                job => {
                    keys += job.keys();
                    jobs.push(job);
                }
            }
            next = if jobs.len() < GROUP_JOBS && keys < GROUP_KEYS { queue.try_recv().ok() } else { None };
        }
        Some(jobs)
    }
}
