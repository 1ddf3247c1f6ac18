//! A worker: one operation after the other over its own connections.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep, timeout};

use super::pace::{Clock, Pacer};
use super::requests::{self, EncRequests};
use super::setup::{End, Http, Load, Operation};
use super::stock::Stock;
use super::tally::{Tally, note};
use crate::https::{Connection, Endpoint, HttpRequest, HttpResponse, Trouble};
use crate::wire;

/// Pause after a request without an answer.
const PAUSE: Duration = Duration::from_millis(20);
/// The status of a good answer.
const OK: u16 = 200;

/// What all workers of one measurement share.
pub(super) struct Job {
    pub(super) load: Load,
    pub(super) a: End,
    pub(super) endpoint_a: Endpoint,
    pub(super) endpoint_b: Endpoint,
    pub(super) clock: Arc<Clock>,
    pub(super) pacer: OnceLock<Arc<Pacer>>,
    pub(super) enc_requests: EncRequests,
    /// For `dec`.
    pub(super) stock: Option<Arc<Stock>>,
    /// Reached when every worker has connected, or has tried to.
    pub(super) connected: Barrier,
    /// Why there is no measurement.
    pub(super) failed: OnceLock<String>,
}

/// Connections to A and B, if the operation needs them.
#[derive(Default)]
pub(super) struct Connections {
    a: Option<Connection>,
    b: Option<Connection>,
}

impl Connections {
    /// Opens those that `job` needs before the clock runs.
    pub(super) async fn open(job: &Job) -> io::Result<Self> {
        let operation = job.load.operation;
        let (mut a, mut b) = (None, None);
        if matches!(operation, Operation::Enc | Operation::Pair) {
            a = Some(open(&job.endpoint_a, job).await?);
        }
        if matches!(operation, Operation::Dec | Operation::Pair) {
            b = Some(open(&job.endpoint_b, job).await?);
        }
        Ok(Self { a, b })
    }

    /// Shares in the same connections; with HTTP/2 only.
    pub(super) fn share(&self) -> Self {
        let share = |connection: &Option<Connection>| connection.as_ref().and_then(Connection::share);
        Self { a: share(&self.a), b: share(&self.b) }
    }
}

/// Why an operation failed.
enum Failure {
    /// The answer has another status.
    Status,
    /// There is no complete answer.
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

impl From<Trouble> for Failure {
    fn from(_: Trouble) -> Self {
        Self::NoAnswer
    }
}

/// One worker.
pub(super) struct Worker {
    job: Arc<Job>,
    connections: Connections,
    tally: Arc<Mutex<Tally>>,
    enc: HttpResponse,
    dec: HttpResponse,
    /// When `enc_keys` of a pair was answered.
    between: Option<Instant>,
}

impl Worker {
    pub(super) fn new(job: Arc<Job>, connections: Connections, tally: Arc<Mutex<Tally>>) -> Self {
        let (enc, dec) = (HttpResponse::default(), HttpResponse::default());
        Self { job, connections, tally, enc, dec, between: None }
    }

    /// Works until the time is over.
    pub(super) async fn work(mut self) {
        while let Some(due) = self.due().await {
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
                self.connections = Connections::default();
                sleep(PAUSE).await;
            }
        }
    }

    /// Waits until the next operation is due, and returns when that was.
    async fn due(&self) -> Option<Instant> {
        if let Some(pacer) = self.job.pacer.get() {
            return pacer.next().await;
        }
        let now = Instant::now();
        (now < self.job.clock.end()).then_some(now)
    }

    async fn operate(&mut self) -> Result<(), Failure> {
        (self.enc.status, self.dec.status, self.between) = (0, 0, None);
        match self.job.load.operation {
            Operation::Enc => self.enc().await,
            Operation::Handshake => {
                self.connections.a = None;
                let result = self.enc().await;
                self.connections.a = None;
                result
            }
            Operation::Pair => {
                self.enc().await?;
                self.between = Some(Instant::now());
                let request = self.dec_request()?;
                self.dec(&request).await
            }
            Operation::Dec => {
                let job = Arc::clone(&self.job);
                let ids = job.stock.as_ref().and_then(|stock| stock.take(job.load.number));
                self.dec(&requests::dec(&job.a, ids.ok_or(Failure::StockIsOut)?)).await
            }
        }
    }

    async fn enc(&mut self) -> Result<(), Failure> {
        let Self { job, connections, enc, .. } = self;
        exchange(&mut connections.a, &job.endpoint_a, job, job.enc_requests.next(), enc).await
    }

    async fn dec(&mut self, request: &HttpRequest) -> Result<(), Failure> {
        let Self { job, connections, dec, .. } = self;
        exchange(&mut connections.b, &job.endpoint_b, job, request, dec).await
    }

    /// `dec_keys` for the keys that `enc_keys` has just delivered.
    fn dec_request(&self) -> Result<HttpRequest, Failure> {
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
        Ok(requests::dec(&self.job.a, container.keys.iter().map(|entry| entry.id)))
    }

    /// Counts an operation that was due at `due` and ended at `now`.
    fn count(&self, due: Instant, now: Instant, result: &Result<(), Failure>) {
        let mut tally = self.tally.lock();
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
        for HttpResponse { status, body, .. } in [&self.enc, &self.dec] {
            if *status != 0 {
                counts.status(*status);
            }
            if !matches!(*status, 0 | OK) {
                counts.refusals.entry(*status).or_insert_with(|| wire::message_of(body));
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

/// Sends one request over `connection`; opens it if there is none.
async fn exchange(
    connection: &mut Option<Connection>,
    endpoint: &Endpoint,
    job: &Job,
    request: &HttpRequest,
    response: &mut HttpResponse,
) -> Result<(), Failure> {
    let open_one = match connection {
        Some(open_one) => open_one,
        None => connection.insert(open(endpoint, job).await?),
    };
    open_one.exchange(request, response).await?;
    if response.is_last {
        *connection = None;
    }
    if response.status == OK { Ok(()) } else { Err(Failure::Status) }
}

/// Connects, with the version of HTTP that is measured.
async fn open(endpoint: &Endpoint, job: &Job) -> io::Result<Connection> {
    let connected = timeout(job.load.timeout, endpoint.connect()).await;
    let connection = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if connection.is_http_2() == (job.load.http == Http::V1) {
        let text = format!("the server does not speak HTTP/{}", job.load.http.number());
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(connection)
}
