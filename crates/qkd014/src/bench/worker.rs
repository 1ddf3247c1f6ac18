//! One of those who ask: one operation after the other over connections of its own.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep, timeout};

use super::calls::{Call, Turns};
use super::link::{Link, Reply, Target};
use super::pace::{Clock, Pacer};
use super::setup::{End, Load, Operation};
use super::stock::Stock;
use super::tally::{Tally, note};

/// Pause after a request without an answer.
const PAUSE: Duration = Duration::from_millis(20);
/// The status of an answer that is as it should be.
const OK: u16 = 200;

/// What all workers of one measurement share.
pub(super) struct Job {
    pub(super) load: Load,
    pub(super) a: End,
    pub(super) target_a: Target,
    pub(super) target_b: Target,
    pub(super) clock: Arc<Clock>,
    pub(super) pacer: OnceLock<Arc<Pacer>>,
    /// `enc_keys`.
    pub(super) enc_calls: Turns,
    /// For `dec`.
    pub(super) stock: Option<Arc<Stock>>,
    /// Everybody has connected, or tried to.
    pub(super) connected: Barrier,
    /// Why there is no measurement.
    pub(super) failed: OnceLock<String>,
}

/// Connections to A and to B, as far as the operation needs them.
#[derive(Default)]
pub(super) struct Links {
    a: Option<Link>,
    b: Option<Link>,
}

impl Links {
    /// Those that `job` needs before the clock runs.
    pub(super) async fn open(job: &Job) -> io::Result<Self> {
        let operation = job.load.operation;
        let (mut a, mut b) = (None, None);
        if matches!(operation, Operation::Enc | Operation::Pair) {
            a = Some(job.target_a.open().await?);
        }
        if matches!(operation, Operation::Dec | Operation::Pair) {
            b = Some(job.target_b.open().await?);
        }
        Ok(Self { a, b })
    }

    /// Shares in the same connections; with HTTP/2 only.
    pub(super) fn share(&self) -> Self {
        let share = |link: &Option<Link>| link.as_ref().and_then(Link::share);
        Self { a: share(&self.a), b: share(&self.b) }
    }
}

/// Why an operation failed.
enum Failure {
    /// The answer has another status.
    Status,
    /// There is no whole answer.
    NoAnswer,
    /// An answer that is no key container.
    NoContainer,
    /// All keys that were fetched before are used up.
    StockIsOut,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::NoAnswer
    }
}

/// One worker.
pub(super) struct Worker {
    job: Arc<Job>,
    links: Links,
    tally: Arc<Mutex<Tally>>,
    enc: Reply,
    dec: Reply,
    /// When `enc_keys` of a pair was answered.
    between: Option<Instant>,
}

impl Worker {
    pub(super) fn new(job: Arc<Job>, links: Links, tally: Arc<Mutex<Tally>>) -> Self {
        Self { job, links, tally, enc: Reply::default(), dec: Reply::default(), between: None }
    }

    /// Works until the time is over.
    pub(super) async fn work(mut self) {
        while let Some(due) = self.turn().await {
            let patience = self.job.load.timeout;
            let result = match timeout(patience, self.operate()).await {
                Ok(result) => result,
                Err(_) => Err(Failure::NoAnswer),
            };
            let now = Instant::now();
            match result {
                Err(Failure::StockIsOut) => return self.job.clock.end_at(now),
                ref result => self.count(due, now, result),
            }
            if matches!(result, Err(Failure::NoAnswer)) {
                self.links = Links::default();
                sleep(PAUSE).await;
            }
        }
    }

    /// When the next operation is due: now, or when the pacer says.
    async fn turn(&self) -> Option<Instant> {
        if let Some(pacer) = self.job.pacer.get() {
            return pacer.next().await;
        }
        let now = Instant::now();
        (now < self.job.clock.end()).then_some(now)
    }

    async fn operate(&mut self) -> Result<(), Failure> {
        (self.enc.status, self.dec.status, self.between) = (0, 0, None);
        match self.job.load.operation {
            Operation::Enc => self.enc(false).await,
            Operation::Handshake => {
                self.links.a = None;
                let result = self.enc(true).await;
                self.links.a = None;
                result
            }
            Operation::Pair => {
                self.enc(false).await?;
                self.between = Some(Instant::now());
                let call = self.dec_call()?;
                self.dec(&call).await
            }
            Operation::Dec => {
                let job = Arc::clone(&self.job);
                let ids = job.stock.as_ref().and_then(|stock| stock.take(job.load.number));
                let call = Call::dec(&job.a, ids.ok_or(Failure::StockIsOut)?);
                self.dec(&call).await
            }
        }
    }

    async fn enc(&mut self, is_last: bool) -> Result<(), Failure> {
        let enc_call = self.job.enc_calls.next();
        call(&mut self.links.a, &self.job.target_a, enc_call, is_last, &mut self.enc).await
    }

    async fn dec(&mut self, call_: &Call) -> Result<(), Failure> {
        call(&mut self.links.b, &self.job.target_b, call_, false, &mut self.dec).await
    }

    /// `dec_keys` of the keys that `enc_keys` has just brought.
    fn dec_call(&self) -> Result<Call, Failure> {
        #[derive(Deserialize)]
        struct Container<'a> {
            #[serde(borrow)]
            keys: Vec<Entry<'a>>,
        }
        #[derive(Deserialize)]
        struct Entry<'a> {
            #[serde(rename = "key_ID")]
            id: &'a str,
            #[serde(rename = "key")]
            _key: IgnoredAny,
        }
        let container: Container<'_> =
            serde_json::from_slice(&self.enc.body).map_err(|_| Failure::NoContainer)?;
        Ok(Call::dec(&self.job.a, container.keys.iter().map(|entry| entry.id)))
    }

    /// Counts an operation that was due at `due` and ended at `now`.
    fn count(&self, due: Instant, now: Instant, result: &Result<(), Failure>) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() {
            tally.answers.keep(
                if self.enc.status == OK { &self.enc.body } else { &[] },
                if self.dec.status == OK { &self.dec.body } else { &[] },
            );
        }
        if !self.job.clock.counts(now) {
            return;
        }
        let counts = &mut tally.counts;
        for status in [self.enc.status, self.dec.status] {
            if status != 0 {
                counts.status(status);
            }
        }
        match result {
            Ok(()) => {
                note(&mut counts.times, now - due);
                if let Some(between) = self.between {
                    note(&mut counts.enc_times, between - due);
                    note(&mut counts.dec_times, now - between);
                }
            }
            Err(Failure::NoAnswer) => counts.trouble("no answer"),
            Err(Failure::NoContainer) => counts.trouble("no key container"),
            Err(Failure::Status | Failure::StockIsOut) => {}
        }
    }
}

/// One request over `link`, which is opened when there is none.
async fn call(
    link: &mut Option<Link>,
    target: &Target,
    call: &Call,
    is_last: bool,
    reply: &mut Reply,
) -> Result<(), Failure> {
    let open = match link {
        Some(open) => open,
        None => link.insert(target.open().await?),
    };
    open.exchange(call, is_last, reply).await?;
    if reply.is_last {
        *link = None;
    }
    if reply.status == OK { Ok(()) } else { Err(Failure::Status) }
}
