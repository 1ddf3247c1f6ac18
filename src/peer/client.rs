//! One peer as this site calls it.
//!
//! Calls share one HTTP/2 connection. Each ends by a deadline, is repeated with growing pauses while the
//! failure may pass, and is refused at once while the circuit breaker is open. Every call is safe to repeat.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::breaker::{Breaker, BreakerState, jitter};
use super::error::PeerError;
use super::meter::{PeerMeter, PeerMeters};
use super::wire::{
    BATCHES_PATH, BatchMetadata, BatchStored, INFO_PATH, Info, POOL_SETS_PATH, Refusal, SetReady, VOID_PATH,
    VoidAnswer, VoidRequest, encode,
};
use crate::kme::{KmeId, Random};
use crate::pool::AnnouncedSet;
use crate::tls::{HttpsClient, HybridKeyExchange};

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
/// Characters of a peer's message that are kept.
const MESSAGE_MAX_CHARS: usize = 200;
/// How often one call is tried: once more for a connection that had died unnoticed, once more for a restart.
const ATTEMPTS_MAX: u32 = 3;
/// First pause before a call is repeated; doubles each time.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of one peer's client.
#[derive(Clone, Copy, Debug)]
pub struct PeerClientSettings {
    /// The longest that a call may take, its repetitions and its wait for a turn included.
    pub timeout: Duration,
    /// Most calls under way at once; more wait for a turn.
    pub max_in_flight: usize,
}

/// A batch that a peer has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Whether the connection that carried the metadata had a hybrid post-quantum key exchange.
    pub hybrid_tls: bool,
}

/// An answer and the connection that it came by.
struct Reply<T> {
    body: T,
    hybrid_tls: bool,
}

/// Calls one configured peer.
pub struct PeerClient {
    kme: KmeId,
    base: String,
    https: HttpsClient,
    settings: PeerClientSettings,
    turns: Semaphore,
    breaker: Breaker,
    random: Arc<dyn Random>,
    meter: PeerMeter,
}

impl PeerClient {
    /// A client of the peer at `url` (scheme and authority; a path is kept as a prefix).
    pub fn new(
        kme: KmeId,
        url: &str,
        https: HttpsClient,
        settings: PeerClientSettings,
        random: Arc<dyn Random>,
    ) -> Self {
        let base = url.trim_end_matches('/').to_owned();
        let turns = Semaphore::new(settings.max_in_flight.clamp(1, Semaphore::MAX_PERMITS));
        let meter = PeerMeters::default().of(&kme);
        Self { kme, base, https, settings, turns, breaker: Breaker::new(Arc::clone(&random)), random, meter }
    }

    /// The same client, whose calls `meters` count.
    pub fn metered(self, meters: &PeerMeters) -> Self {
        Self { meter: meters.of(&self.kme), ..self }
    }

    /// The peer's ID.
    pub fn kme(&self) -> &KmeId {
        &self.kme
    }

    /// Whether the peer is being called.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Announces a pool set; done when the peer has downloaded it.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn announce(&self, set: &AnnouncedSet) -> Result<SetReady, PeerError> {
        self.post(POOL_SETS_PATH, set).await.map(|reply| reply.body)
    }

    /// Pushes a batch; done when the peer has stored its keys durably.
    ///
    /// # Errors
    /// [`PeerError`]; after any but `Refused` and `Paused` the peer may have stored the keys all the same:
    /// [`Self::void`] them.
    pub async fn push(&self, batch: &BatchMetadata) -> Result<Pushed, PeerError> {
        let Reply { body: stored, hybrid_tls } = self.post::<BatchStored>(BATCHES_PATH, batch).await?;
        if stored.batch_id == batch.batch_id && stored.keys == batch.key_ids.len() {
            Ok(Pushed { hybrid_tls })
        } else {
            Err(self.garbled("an acknowledgement of something else"))
        }
    }

    /// Voids keys that nobody retrieved, and the batch itself if it arrives later.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn void(&self, request: &VoidRequest) -> Result<VoidAnswer, PeerError> {
        self.post(VOID_PATH, request).await.map(|reply| reply.body)
    }

    /// Who the peer says it is.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn info(&self) -> Result<Info, PeerError> {
        let info = self.call::<Info>(Method::GET, INFO_PATH, Bytes::new()).await?.body;
        if info.kme_id == self.kme { Ok(info) } else { Err(self.garbled("the name of another KME")) }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Reply<T>, PeerError> {
        let body = encode(body).map_err(|_| self.garbled("a request that cannot be written"))?;
        self.call(Method::POST, path, body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Reply<T>, PeerError> {
        let started = Instant::now();
        let result = self.call_in_time(method, path, body).await;
        self.meter.note(path, &result, started.elapsed());
        result
    }

    async fn call_in_time<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Reply<T>, PeerError> {
        let deadline = Instant::now() + self.settings.timeout;
        let slow = || PeerError::Slow(self.kme.clone());
        let _turn = timeout_at(deadline, self.turns.acquire()).await.map_err(|_| slow())?;
        let mut pause = RETRY_PAUSE;
        let mut attempts = 1;
        let mut sent: Option<PeerError> = None;
        loop {
            let error = match self.attempt(&method, path, body.clone(), deadline).await {
                Ok(answer) => return Ok(answer),
                // The circuit opened between two attempts, but the first may have arrived.
                Err(error) if error.was_not_sent() => return Err(sent.unwrap_or(error)),
                Err(error) => error,
            };
            let again = Instant::now() + pause / 2 + jitter(&*self.random, pause / 2);
            if attempts == ATTEMPTS_MAX || !error.is_passing() || again >= deadline {
                return Err(error);
            }
            tracing::debug!(peer = %self.kme, error = &error as &dyn std::error::Error, "calling a peer again");
            self.meter.note_repeat();
            sleep_until(again).await;
            pause *= 2;
            attempts += 1;
            sent = Some(error);
        }
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply<T>, PeerError> {
        let Some(leave) = self.breaker.enter() else {
            return Err(PeerError::Paused(self.kme.clone()));
        };
        let result = self.exchange(method, path, body, deadline).await;
        match &result {
            Err(error) if error.is_silence() => leave.failed(),
            _ => leave.answered(),
        }
        result
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply<T>, PeerError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| self.garbled("an address that is no URL"))?;
        let response = timeout_at(deadline, self.https.send(request))
            .await
            .map_err(|_| PeerError::Slow(self.kme.clone()))?
            .map_err(|source| PeerError::Unreachable { kme: self.kme.clone(), source })?;
        let hybrid_tls = response.extensions().get::<HybridKeyExchange>().is_some_and(|hybrid| hybrid.0);
        let (status, body) = self.receive(response, deadline).await?;
        if status == StatusCode::OK {
            let body =
                serde_json::from_slice(&body).map_err(|_| self.garbled("JSON of an unexpected shape"))?;
            return Ok(Reply { body, hybrid_tls });
        }
        let kme = self.kme.clone();
        let message = message_of(&body);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            Err(PeerError::Busy { kme, message })
        } else {
            Err(PeerError::Refused { kme, status, message })
        }
    }

    async fn receive(
        &self,
        response: Response<Incoming>,
        deadline: Instant,
    ) -> Result<(StatusCode, Bytes), PeerError> {
        let status = response.status();
        let body = timeout_at(deadline, Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect())
            .await
            .map_err(|_| PeerError::Slow(self.kme.clone()))?
            .map_err(|_| self.garbled("an answer that is too long or broke off"))?;
        Ok((status, body.to_bytes()))
    }

    fn garbled(&self, what: &'static str) -> PeerError {
        PeerError::Garbled { kme: self.kme.clone(), what }
    }
}

/// What a refusal says, fit for a log line.
fn message_of(body: &[u8]) -> String {
    serde_json::from_slice::<Refusal>(body)
        .map(|refusal| refusal.message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect())
        .unwrap_or_default()
}
