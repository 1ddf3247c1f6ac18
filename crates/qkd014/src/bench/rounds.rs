//! One round after the other: the baseline, then the KMEs, each under the same load.

use std::sync::Arc;

use super::baseline::BaselineProcess;
use super::error::BenchError;
use super::kept::KeptAnswers;
use super::load;
use super::processes::Processes;
use super::report::{Report, Round, Run};
use super::requests;
use super::setup::{Baseline, Load, Operation, Setup};
use super::stock::{self, Limits, Stock};
use super::twins::{Comparison, Twins};
use super::windows::{Window, Windows};
use crate::client::Client;

/// Keys to fetch for each second of `dec_keys`: more than any known server retrieves in a second.
const STOCK_PER_S: f64 = 30_000.0;

/// News while a measurement runs.
#[derive(Debug)]
pub enum News {
    /// What comes next.
    Step(String),
    /// The counts of a finished window.
    Window(Window),
}

/// Measures everything in `setup` and reports progress through `tell`.
///
/// # Errors
/// [`BenchError`] when there is nothing to measure. A server that fails under load is a result, not an error.
pub async fn run(setup: &Setup, tell: impl Fn(News)) -> Result<Report, BenchError> {
    let bench = Bench::open(setup).await?;
    let progress =
        |text: &str, round: usize| tell(News::Step(format!("round {round} of {}: {text}", setup.rounds)));
    let mut rounds = Vec::with_capacity(setup.rounds);
    let mut stock = Stock::default();
    for round in 1..=setup.rounds {
        let baseline = match &setup.baseline {
            None => None,
            Some(baseline) => {
                progress("baseline", round);
                Some(bench.baseline(baseline).await?)
            }
        };
        progress("making ready", round);
        bench.prepare(&mut stock).await?;
        progress(setup.load.operation.name(), round);
        let kme;
        (kme, stock) = bench.kmes(stock, &|window| tell(News::Window(window))).await?;
        rounds.push(Round { baseline, kme });
    }
    Ok(Report::new(setup, bench.key_bits(), rounds))
}

struct Bench<'a> {
    setup: &'a Setup,
    /// For calls outside the measured time.
    client_a: Client,
    client_b: Client,
    /// The slave whose ready keys are counted and waited for.
    slave: String,
    limits: Limits,
}

impl<'a> Bench<'a> {
    async fn open(setup: &'a Setup) -> Result<Self, BenchError> {
        let (client_a, client_b) = (stock::client(&setup.a)?, stock::client(&setup.b)?);
        let slave = requests::first_slave(&setup.b, &setup.load);
        let limits = stock::limits(&client_a, &slave).await?;
        if setup.load.number > limits.max_per_request {
            let text = format!(
                "--number {} is more than the KME allows: {}",
                setup.load.number, limits.max_per_request
            );
            return Err(BenchError(text));
        }
        Ok(Self { setup, client_a, client_b, slave, limits })
    }

    fn key_bits(&self) -> u32 {
        self.setup.load.size_bits.unwrap_or(self.limits.key_bits)
    }

    /// Measures a new baseline. `dec` and `pair` send it the same requests as a KME: it answers everything.
    async fn baseline(&self, baseline: &Baseline) -> Result<Run, BenchError> {
        let key_bytes = usize::try_from(self.key_bits() / 8).unwrap_or_default();
        let process = BaselineProcess::start(baseline, self.setup.load.number, key_bytes)?;
        let (a, b) = (process.instead_of(&self.setup.a)?, process.instead_of(&self.setup.b)?);
        let processes = Processes::find(&[("baseline".to_owned(), process.url())]);
        let load = &Load {
            duration: baseline.duration.unwrap_or(self.setup.load.duration),
            ..self.setup.load.clone()
        };
        let stock = Arc::new(Stock::of_baseline(load.number)?);
        let measured = load::run(load, (&a, &b), Some(stock), 0, &processes, None).await?;
        let run = Run::new(measured, load).0;
        if run.operations == 0 {
            let text = "the baseline server served no request; do the SAEs' certificates come from --ca, or --baseline-ca?";
            return Err(BenchError(text.to_owned()));
        }
        Ok(run)
    }

    /// Prepares what is needed before the clock runs: for `dec`, keys in `known`.
    async fn prepare(&self, known: &mut Stock) -> Result<(), BenchError> {
        let Setup { load, stock, .. } = self.setup;
        if load.operation != Operation::Dec {
            return stock::wait_until_ready(&self.client_a, &self.slave, stock.unwrap_or_default()).await;
        }
        let count = stock.unwrap_or_else(|| usual_stock(load));
        known.fill(&self.client_a, &self.slave, load, self.limits, count).await
    }

    /// Measures the KMEs. Returns what is left of the keys that `dec` knows.
    async fn kmes(&self, known: Stock, tell: &dyn Fn(Window)) -> Result<(Run, Stock), BenchError> {
        let Setup { a, b, load, compared_max, servers, .. } = self.setup;
        let processes = Processes::find(servers);
        let known = Arc::new(known);
        let is_dec = load.operation == Operation::Dec;
        let known_before = is_dec.then(|| known.known());
        let ready_before = stock::ready(&self.client_a, &self.slave).await;
        let windows = Windows { every: self.setup.window(), tell };
        let stock = Some(Arc::clone(&known));
        let measured = load::run(load, (a, b), stock, *compared_max, &processes, Some(&windows)).await?;
        let ready_after = stock::ready(&self.client_a, &self.slave).await;
        let known = Arc::into_inner(known)
            .ok_or_else(|| BenchError("a worker of the client did not end".to_owned()))?;
        let (run, answers) = Run::new(measured, load);
        let known_after = is_dec.then(|| known.known());
        let twins = Some(self.twins(&answers, &known).await);
        let run = Run { ready_before, ready_after, known_before, known_after, twins, ..run };
        Ok((run.with_reserve_share(answers.seen(), load), known))
    }

    async fn twins(&self, answers: &KeptAnswers, stock: &Stock) -> Twins {
        let Setup { a, load, .. } = self.setup;
        let comparison = Comparison::new(answers, load.number);
        match load.operation {
            Operation::Enc | Operation::Handshake => {
                comparison.by_fetching(&self.client_b, &a.name, self.limits).await
            }
            Operation::Dec | Operation::Pair => comparison.with_answers(answers, stock, load.number),
        }
    }
}

/// A stock that lasts for the whole time.
fn usual_stock(load: &Load) -> u64 {
    let secs = (load.warmup + load.duration).as_secs_f64();
    let operations = load.rate.map_or(STOCK_PER_S, |rate| rate.min(STOCK_PER_S)) * secs * 1.1;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let operations = operations.ceil().clamp(1.0, 1e9) as u64;
    operations * u64::from(load.number)
}
