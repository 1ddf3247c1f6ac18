//! One measurement: all workers connect, the clock runs, everything is counted.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep_until};

use super::error::BenchError;
use super::kept::KeptAnswers;
use super::pace::{Clock, Pacer};
use super::processes::{Processes, Used};
use super::requests::EncRequests;
use super::setup::{End, Http, Load};
use super::stock::Stock;
use super::tally::{Counts, Tally};
use super::windows::{self, Window, Windows};
use super::worker::{Connections, Job, Worker};
use crate::https::{Endpoint, HTTP_1, HTTP_2};

/// What was counted, and over what time.
pub(super) struct Measured {
    pub(super) counts: Counts,
    /// Of the time that is counted, if windows were wanted.
    pub(super) windows: Vec<Window>,
    pub(super) answers: KeptAnswers,
    pub(super) counted: Duration,
    /// Processor time used meanwhile.
    pub(super) used: Used,
    /// How long processor time was counted.
    pub(super) used_for: Duration,
}

/// Puts `load` on A and B.
pub(super) async fn run(
    load: &Load,
    ends: (&End, &End),
    stock: Option<Arc<Stock>>,
    answers_max: usize,
    processes: &Processes,
    windows: Option<&Windows<'_>>,
) -> Result<Measured, BenchError> {
    let streams = load.http.streams();
    let workers = load.connections * streams;
    let clock = Arc::new(Clock::new(load.warmup, load.duration));
    let offer = if load.http == Http::V1 { HTTP_1 } else { HTTP_2 };
    let endpoint = |end: &End| Endpoint::new(&end.url, &end.credentials.0, offer).map_err(BenchError);
    let job = Arc::new(Job {
        endpoint_a: endpoint(ends.0)?,
        endpoint_b: endpoint(ends.1)?,
        a: ends.0.clone(),
        clock: Arc::clone(&clock),
        pacer: OnceLock::new(),
        enc_requests: EncRequests::new(ends.1, load),
        stock,
        connected: Barrier::new(load.connections + 1),
        failed: OnceLock::new(),
        load: load.clone(),
    });
    let threads = load.threads.clamp(1, load.connections);
    let (mut running, mut tallies) = (Vec::with_capacity(threads), Vec::with_capacity(threads));
    for thread in 0..threads {
        let connections = (thread..load.connections).step_by(threads).count();
        let tally = Arc::new(Mutex::new(Tally::new(answers_max * connections * streams / workers)?));
        tallies.push(Arc::clone(&tally));
        let job = Arc::clone(&job);
        running.push(tokio::task::spawn_blocking(move || work(job, connections, tally)));
    }
    job.connected.wait().await;
    if job.failed.get().is_none() {
        sleep_until(clock.counting()).await;
    }
    let (before, began) = (processes.used(), Instant::now());
    let ended = async {
        let results = try_join_all(running).await;
        let results = results.map_err(|_| BenchError("a thread of the client broke down".to_owned()))?;
        results.into_iter().collect()
    };
    let (counts, windows) = windows::count(&clock, &tallies, windows, ended).await?;
    let (used, used_for) = (processes.used().since(&before), began.elapsed());
    if let Some(reason) = job.failed.get() {
        return Err(BenchError(reason.clone()));
    }
    let counted = clock.counted();
    if counted.is_zero() {
        return Err(BenchError("the keys that were fetched before did not outlast the warm-up".to_owned()));
    }
    let mut answers = KeptAnswers::default();
    for tally in tallies {
        let tally = Arc::into_inner(tally)
            .ok_or_else(|| BenchError("a worker of the client did not end".to_owned()))?;
        answers.append(tally.into_inner().answers);
    }
    Ok(Measured { counts, windows, answers, counted, used, used_for })
}

/// One thread: runs the workers of its share of the connections on its own runtime.
fn work(job: Arc<Job>, connections: usize, tally: Arc<Mutex<Tally>>) -> Result<(), BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| BenchError(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        let workers: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(connection(Arc::clone(&job), Arc::clone(&tally))))
            .collect();
        for worker in workers {
            worker.await.map_err(|_| BenchError("a worker of the client broke down".to_owned()))?;
        }
        Ok(())
    })
}

/// The workers of one connection.
async fn connection(job: Arc<Job>, tally: Arc<Mutex<Tally>>) {
    let connections = Connections::open(&job).await;
    if let Err(error) = &connections {
        let _ = job.failed.set(format!("no connection: {error}"));
    }
    job.connected.wait().await;
    let (None, Ok(connections)) = (job.failed.get(), connections) else { return };
    if let Some(rate) = job.load.rate {
        job.pacer.get_or_init(|| Pacer::start(Arc::clone(&job.clock), rate));
    }
    let mut all: Vec<Connections> = (1..job.load.http.streams()).map(|_| connections.share()).collect();
    all.push(connections);
    let work = |own| tokio::spawn(Worker::new(Arc::clone(&job), own, Arc::clone(&tally)).work());
    let workers: Vec<_> = all.into_iter().map(work).collect();
    for worker in workers {
        let _ = worker.await;
    }
}
