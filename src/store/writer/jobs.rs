//! Jobs on their way to a writer, and results on their way back.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kme::{Key, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::commit_race::CommitRace;
use crate::store::connection::Link;
use crate::store::error::{RetrieveError, StoreError};
use crate::store::sealing::Sealer;
use crate::store::verbs::{AfterCommit, Needs, Records, Retrieve, Verb};

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

    fn after_commit(&self) -> AfterCommit;
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

    fn after_commit(&self) -> AfterCommit {
        self.output.as_ref().map_or(AfterCommit::Nothing, |output| self.verb.after_commit(output))
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

    pub(super) fn after_commit(&self) -> AfterCommit {
        match self {
            Self::Retrieve(_) => AfterCommit::Nothing,
            Self::Change(change) => change.after_commit(),
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

/// What callers send to the writers.
pub(crate) enum Message {
    Job(Job),
    /// Finish what waits and end. The sender is dropped when the last writer has ended.
    Stop(oneshot::Sender<()>),
}

/// The waiting jobs, for all writers.
pub(crate) struct Queue {
    messages: tokio::sync::Mutex<mpsc::Receiver<Message>>,
    /// Dropped with the queue. That tells the task that stopped the writers that all have ended.
    stopped: Mutex<Option<oneshot::Sender<()>>>,
}

impl Queue {
    pub(crate) fn new() -> (mpsc::Sender<Message>, Arc<Self>) {
        let (sender, messages) = mpsc::channel(QUEUE_JOBS);
        let queue = Self { messages: tokio::sync::Mutex::new(messages), stopped: Mutex::default() };
        (sender, Arc::new(queue))
    }

    /// Waits for a job and returns it with others that wait. `None` when no more will come.
    pub(super) async fn next_group(&self) -> Option<Vec<Job>> {
        let mut messages = self.messages.lock().await;
        let mut next = Some(messages.recv().await?);
        let (mut keys, mut jobs) = (0, Vec::new());
        while let Some(message) = next {
            match message {
                Message::Stop(stopped) => {
                    messages.close();
                    *self.stopped.lock() = Some(stopped);
                }
                Message::Job(job) => {
                    keys += job.key_count();
                    jobs.push(job);
                }
            }
            next = if jobs.len() < GROUP_JOBS && keys < GROUP_KEYS { messages.try_recv().ok() } else { None };
        }
        Some(jobs)
    }
}
