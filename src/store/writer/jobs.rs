//! Jobs on their way to a writer, and results on their way back.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kme::{Key, Timestamp};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::commit_race::CommitRace;
use crate::store::connection::Link;
use crate::store::error::{RetrieveError, StoreError};
use crate::store::sealing::Sealer;
use crate::store::verbs::{Needs, Records, Retrieve, Verb};

/// Most jobs that wait in the queue; more callers wait to get in.
const QUEUE_JOBS: usize = 1024;
/// Most jobs that share one commit.
const GROUP_JOBS: usize = 128;
/// Keys after which a group takes no further job. Bounds its memory and time.
const GROUP_KEYS: usize = 4096;
/// The answer to a job that was committed without having run: a defect of the writer.
const NEVER_RAN: StoreError = StoreError::Misuse("a job that never ran was committed");

type Reply<T, E = StoreError> = oneshot::Sender<Result<T, E>>;
/// What a caller awaits.
pub(crate) type Answer<T, E = StoreError> = oneshot::Receiver<Result<T, E>>;

/// Work for the store, and the way back to its caller. It may run more than once, until it is committed.
pub(crate) enum Job {
    Retrieve(Box<PendingRetrieval>),
    Change(Box<dyn Change>),
}

/// A retrieval, its caller and what it gets.
pub(crate) struct PendingRetrieval {
    asked: Retrieve,
    race: Arc<CommitRace>,
    keys: Option<Result<Vec<Key>, RetrieveError>>,
    reply: Reply<Vec<Key>, RetrieveError>,
}

impl PendingRetrieval {
    pub(super) fn asked(&self) -> &Retrieve {
        &self.asked
    }

    /// Decides it, provided that the transaction is committed.
    pub(super) fn decide(&mut self, records: &mut Records) {
        self.keys = Some(records.decide(&self.asked));
    }
}

/// A [`Verb`] of any type, with its caller and its result.
pub(crate) trait Change: Send {
    fn name(&self) -> &'static str;
    fn key_count(&self) -> usize;
    fn lock(&self, needs: &mut Needs);

    /// Does its part of a transaction and keeps the result. Returns whether it changed anything.
    fn run<'a>(
        &'a mut self,
        link: &'a mut Link,
        sealer: &'a Sealer,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    fn is_abandoned(&self) -> bool;
    fn succeed(self: Box<Self>);
    fn fail(self: Box<Self>, error: StoreError);
}

struct PendingChange<V: Verb> {
    verb: V,
    output: Option<V::Output>,
    reply: Reply<V::Output>,
}

impl<V: Verb> Change for PendingChange<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn key_count(&self) -> usize {
        self.verb.key_count()
    }

    fn lock(&self, needs: &mut Needs) {
        self.verb.lock(needs);
    }

    fn run<'a>(
        &'a mut self,
        link: &'a mut Link,
        sealer: &'a Sealer,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let output = self.verb.run(link, sealer, now).await?;
            Ok(V::is_change(self.output.insert(output)))
        })
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn succeed(self: Box<Self>) {
        let _ = self.reply.send(self.output.ok_or(NEVER_RAN));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        let _ = self.reply.send(Err(error));
    }
}

impl Job {
    pub(crate) fn change<V: Verb>(verb: V) -> (Self, Answer<V::Output>) {
        let (reply, answer) = oneshot::channel();
        (Self::Change(Box::new(PendingChange { verb, output: None, reply })), answer)
    }

    /// A retrieval, whose caller may give up by `race`.
    pub(crate) fn retrieve(
        asked: Retrieve,
        race: Arc<CommitRace>,
    ) -> (Self, Answer<Vec<Key>, RetrieveError>) {
        let (reply, answer) = oneshot::channel();
        (Self::Retrieve(Box::new(PendingRetrieval { asked, race, keys: None, reply })), answer)
    }

    /// Its name in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Retrieve(_) => "retrieve",
            Self::Change(change) => change.name(),
        }
    }

    fn key_count(&self) -> usize {
        match self {
            Self::Retrieve(retrieval) => retrieval.asked.key_ids.len(),
            Self::Change(change) => change.key_count(),
        }
    }

    /// Claims the commit, right before it. `false`: the caller has given up, so it must not take place.
    pub(super) fn claim(&self) -> bool {
        match self {
            Self::Retrieve(retrieval) => retrieval.race.claim(),
            Self::Change(_) => true,
        }
    }

    /// Whether nobody waits for it.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Retrieve(retrieval) => retrieval.reply.is_closed() || retrieval.race.is_given_up(),
            Self::Change(change) => change.is_abandoned(),
        }
    }

    // A caller that is gone needs no answer, so a failed send is no failure.

    /// Answers with the result, after the commit.
    pub(super) fn succeed(self) {
        match self {
            Self::Retrieve(retrieval) => {
                let _ = retrieval.reply.send(retrieval.keys.unwrap_or(Err(NEVER_RAN.into())));
            }
            Self::Change(change) => change.succeed(),
        }
    }

    pub(super) fn fail(self, error: StoreError) {
        match self {
            Self::Retrieve(retrieval) => drop(retrieval.reply.send(Err(error.into()))),
            Self::Change(change) => change.fail(error),
        }
    }
}

/// The waiting jobs, for all writers.
pub(crate) struct Queue {
    jobs: Mutex<mpsc::Receiver<Job>>,
    stopping: CancellationToken,
}

impl Queue {
    /// A queue that takes no more jobs once `stopping` is cancelled. Those that wait then are still done.
    pub(crate) fn new(stopping: CancellationToken) -> (mpsc::Sender<Job>, Arc<Self>) {
        let (sender, jobs) = mpsc::channel(QUEUE_JOBS);
        (sender, Arc::new(Self { jobs: Mutex::new(jobs), stopping }))
    }

    /// Waits for a job and returns it with others that wait. `None` when no more will come.
    pub(super) async fn next_group(&self) -> Option<Vec<Job>> {
        let mut waiting = self.jobs.lock().await;
        let first = tokio::select! {
            job = waiting.recv() => job,
            () = self.stopping.cancelled() => {
                waiting.close();
                waiting.recv().await
            }
        };
        let mut jobs = vec![first?];
        let mut keys = jobs.iter().map(Job::key_count).sum::<usize>();
        while jobs.len() < GROUP_JOBS
            && keys < GROUP_KEYS
            && let Ok(job) = waiting.try_recv()
        {
            keys += job.key_count();
            jobs.push(job);
        }
        Some(jobs)
    }
}
