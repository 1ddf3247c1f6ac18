//! One measurement: all workers connect, the clock runs, everything is counted.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep_until};

use super::BenchError;
use super::answers::Answers;
use super::calls::Turns;
use super::link::Target;
use super::pace::{Clock, Pacer};
use super::processes::{Processes, Used};
use super::setup::{End, Load};
use super::stock::Stock;
use super::tally::{Counts, Tally};
use super::windows::{self, Windows};
use super::worker::{Job, Links, Worker};

/// What was counted, and in how long.
pub(super) struct Measured {
    pub(super) counts: Counts,
    pub(super) answers: Answers,
    pub(super) counted: Duration,
    /// Of the processor, while it was counted.
    pub(super) used: Used,
    /// For how long that was.
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
    let job = Arc::new(Job {
        target_a: Target::new(ends.0, load.http, load.timeout)?,
        target_b: Target::new(ends.1, load.http, load.timeout)?,
        a: ends.0.clone(),
        clock: Arc::clone(&clock),
        pacer: OnceLock::new(),
        enc_calls: Turns::new(ends.1, load),
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
    let counts = windows::count(&clock, &tallies, windows, ended).await?;
    let (used, used_for) = (processes.used().since(&before), began.elapsed());
    if let Some(reason) = job.failed.get() {
        return Err(BenchError(reason.clone()));
    }
    let counted = clock.counted();
    if counted.is_zero() {
        return Err(BenchError("the keys that were fetched before did not outlast the warm-up".to_owned()));
    }
    let mut answers = Answers::default();
    for tally in tallies {
        let tally = Arc::into_inner(tally).ok_or_else(|| BenchError("a worker is still there".to_owned()))?;
        answers.append(tally.into_inner().unwrap_or_else(PoisonError::into_inner).answers);
    }
    Ok(Measured { counts, answers, counted, used, used_for })
}

/// One thread: the workers of so many connections, on a runtime of their own.
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
    let links = Links::open(&job).await;
    if let Err(error) = &links {
        let _ = job.failed.set(format!("no connection: {error}"));
    }
    job.connected.wait().await;
    let (None, Ok(links)) = (job.failed.get(), links) else { return };
    if let Some(rate) = job.load.rate {
        job.pacer.get_or_init(|| Pacer::start(Arc::clone(&job.clock), rate));
    }
    let mut all_links: Vec<Links> = (1..job.load.http.streams()).map(|_| links.share()).collect();
    all_links.push(links);
    let work = |links| tokio::spawn(Worker::new(Arc::clone(&job), links, Arc::clone(&tally)).work());
    let workers: Vec<_> = all_links.into_iter().map(work).collect();
    for worker in workers {
        let _ = worker.await;
    }
}
