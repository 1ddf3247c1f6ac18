//! One pool server as a KME sees it: make, download, count, release.
//!
//! Every call ends by a deadline and every answer is bounded. Downloads go straight into locked memory.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use kme::{KmeId, PoolId, PoolServerId};
use mtls::{HttpsClient, HttpsError};

use super::locked::{LockedError, LockedWords};
use super::wire::{CreateRequest, CreateResponse, POOLS_PATH, ReaderCount, ReadsResponse, Ttl};

/// Longest answer that is read, downloads aside.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Characters of a server's message that are kept.
const MESSAGE_MAX_CHARS: usize = 200;

/// Why a call to a pool server failed: one variant for each party that can fix it.
#[derive(Debug, thiserror::Error)]
pub enum PoolClientError {
    /// No connection, or it broke: network, address, certificates.
    #[error("pool server {server} cannot be reached")]
    Unreachable {
        /// The server.
        server: PoolServerId,
        /// What the transport said.
        #[source]
        source: HttpsError,
    },
    /// The answer ended before it was complete.
    #[error("pool server {server} ended its answer too early")]
    Interrupted {
        /// The server.
        server: PoolServerId,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer, or no complete one, in time.
    #[error("pool server {0} did not answer in time")]
    Slow(PoolServerId),
    /// The pool did not arrive in time, although the server answered.
    #[error("pool server {0} did not send the pool in time")]
    Late(PoolServerId),
    /// The server has no room now (503).
    #[error("pool server {server} is busy: {message}")]
    Busy {
        /// The server.
        server: PoolServerId,
        /// Its message.
        message: String,
    },
    /// The server refused: wrong certificate, limits, or no such pool for this caller.
    #[error("pool server {server} refused with status {status}: {message}")]
    Refused {
        /// The server.
        server: PoolServerId,
        /// The status of its answer.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// The download has another length than the pool.
    #[error("pool server {server} sent a pool that is not {wanted_bytes} bytes long")]
    WrongLength {
        /// The server.
        server: PoolServerId,
        /// The length of the pool.
        wanted_bytes: usize,
    },
    /// The server does not speak the protocol.
    #[error("pool server {server} answered with {what}")]
    Garbled {
        /// The server.
        server: PoolServerId,
        /// What was wrong.
        what: &'static str,
    },
    /// This site has no memory for the pool.
    #[error("out of memory for a pool of server {server}")]
    NoMemory {
        /// The server.
        server: PoolServerId,
        /// What the system said.
        #[source]
        source: LockedError,
    },
}

impl PoolClientError {
    /// Whether the server (or the way to it) is to blame, and should not be asked for a while.
    pub fn blames_server(&self) -> bool {
        !matches!(self, Self::NoMemory { .. })
    }

    /// Whether the server did not answer at all.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Slow(_))
    }

    /// The server that was asked.
    pub fn server(&self) -> &PoolServerId {
        match self {
            Self::Slow(server)
            | Self::Late(server)
            | Self::Unreachable { server, .. }
            | Self::Interrupted { server, .. }
            | Self::Busy { server, .. }
            | Self::Refused { server, .. }
            | Self::WrongLength { server, .. }
            | Self::Garbled { server, .. }
            | Self::NoMemory { server, .. } => server,
        }
    }
}

/// Calls one configured pool server.
pub struct PoolClient {
    server: PoolServerId,
    base: String,
    https: HttpsClient,
    call_timeout: Duration,
}

impl PoolClient {
    /// A client of the server at `url` (scheme and authority; a path is kept as a prefix). `call_timeout`
    /// bounds every call except downloads, which have their own deadline.
    pub fn new(server: PoolServerId, url: &Uri, https: HttpsClient, call_timeout: Duration) -> Self {
        let base = url.to_string().trim_end_matches('/').to_owned();
        Self { server, base, https, call_timeout }
    }

    /// The server's name.
    pub fn server(&self) -> &PoolServerId {
        &self.server
    }

    /// Makes a pool of `words` words that `readers` may download for `ttl` (whole seconds).
    ///
    /// # Errors
    /// Any [`PoolClientError`] but `WrongLength` and `NoMemory`. After `Slow` and `Interrupted` the pool may
    /// exist until it expires, but nobody knows its ID.
    pub async fn create(
        &self,
        words: usize,
        readers: Vec<KmeId>,
        ttl: Duration,
    ) -> Result<CreateResponse, PoolClientError> {
        let asked = CreateRequest { words: words as u64, readers, ttl: Ttl(ttl) };
        let body =
            serde_json::to_vec(&asked).map_err(|_| self.garbled("a request that cannot be encoded"))?;
        let deadline = self.call_deadline();
        let response = self.send(Method::POST, POOLS_PATH, Bytes::from(body), deadline).await?;
        self.json(response, StatusCode::CREATED, deadline).await
    }

    /// Downloads a pool of exactly `words` words.
    ///
    /// # Errors
    /// Any [`PoolClientError`]; whatever arrived is wiped.
    pub async fn download(
        &self,
        id: PoolId,
        words: usize,
        deadline: Instant,
    ) -> Result<LockedWords, PoolClientError> {
        let answer_by = deadline.min(self.call_deadline());
        let response = self.send(Method::GET, &path_of(id), Bytes::new(), answer_by).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, answer_by).await);
        }
        let wanted_bytes = words.saturating_mul(8);
        if response.body().size_hint().exact().is_some_and(|size| size != wanted_bytes as u64) {
            return Err(self.wrong_length(wanted_bytes));
        }
        let server = self.server.clone();
        // Locking touches every page, which is slow for large pools.
        let memory = tokio::task::spawn_blocking(move || LockedWords::zeroed(words))
            .await
            .map_err(|_| self.garbled("a pool that could not be stored"))?
            .map_err(|source| PoolClientError::NoMemory { server, source })?;
        timeout_at(deadline, self.receive(response.into_body(), memory))
            .await
            .map_err(|_| PoolClientError::Late(self.server.clone()))?
    }

    async fn receive(
        &self,
        mut body: Incoming,
        mut memory: LockedWords,
    ) -> Result<LockedWords, PoolClientError> {
        let wanted_bytes = memory.len_bytes();
        let wrong_length = || self.wrong_length(wanted_bytes);
        let mut filled = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.interrupted(error.into()))?;
            let Some(chunk) = frame.data_ref() else { continue };
            let end = filled + chunk.len();
            memory.as_bytes_mut().get_mut(filled..end).ok_or_else(wrong_length)?.copy_from_slice(chunk);
            filled = end;
        }
        if filled != wanted_bytes {
            return Err(wrong_length());
        }
        memory.from_little_endian();
        Ok(memory)
    }

    /// Erases a pool that this site made.
    ///
    /// # Errors
    /// Any [`PoolClientError`] but `WrongLength` and `NoMemory`; a pool that is gone already is no error.
    pub async fn release(&self, id: PoolId) -> Result<(), PoolClientError> {
        let deadline = self.call_deadline();
        let response = self.send(Method::DELETE, &path_of(id), Bytes::new(), deadline).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refusal(response, deadline).await),
        }
    }

    /// The downloads so far of a pool that this site made.
    ///
    /// # Errors
    /// Any [`PoolClientError`] but `WrongLength` and `NoMemory`.
    pub async fn reads(&self, id: PoolId) -> Result<Vec<ReaderCount>, PoolClientError> {
        let deadline = self.call_deadline();
        let path = format!("{}/reads", path_of(id));
        let response = self.send(Method::GET, &path, Bytes::new(), deadline).await?;
        let reads: ReadsResponse = self.json(response, StatusCode::OK, deadline).await?;
        Ok(reads.readers)
    }

    /// Asks the server for anything, to see whether it answers and lets this site in.
    ///
    /// # Errors
    /// Any [`PoolClientError`] but `WrongLength` and `NoMemory`.
    pub async fn ping(&self) -> Result<(), PoolClientError> {
        let deadline = self.call_deadline();
        // No pool has this ID.
        let path = format!("{}/reads", path_of(PoolId::from_bytes([0; 16])));
        let response = self.send(Method::GET, &path, Bytes::new(), deadline).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refusal(response, deadline).await),
        }
    }

    fn call_deadline(&self) -> Instant {
        Instant::now() + self.call_timeout
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response<Incoming>, PoolClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request =
            request.body(Full::new(body)).map_err(|_| self.garbled("an address that is not a URL"))?;
        timeout_at(deadline, self.https.send(request))
            .await
            .map_err(|_| PoolClientError::Slow(self.server.clone()))?
            .map_err(|source| PoolClientError::Unreachable { server: self.server.clone(), source })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
        expected: StatusCode,
        deadline: Instant,
    ) -> Result<T, PoolClientError> {
        if response.status() != expected {
            return Err(self.refusal(response, deadline).await);
        }
        let body = self.collect(response.into_body(), deadline).await?;
        serde_json::from_slice(&body).map_err(|_| self.garbled("JSON of an unexpected shape"))
    }

    async fn refusal(&self, response: Response<Incoming>, deadline: Instant) -> PoolClientError {
        #[derive(serde::Deserialize)]
        struct Message {
            message: String,
        }
        let status = response.status();
        let body = self.collect(response.into_body(), deadline).await.unwrap_or_default();
        let message = serde_json::from_slice::<Message>(&body)
            .map(|body| body.message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect())
            .unwrap_or_default();
        let server = self.server.clone();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            PoolClientError::Busy { server, message }
        } else {
            PoolClientError::Refused { server, status, message }
        }
    }

    async fn collect(&self, body: Incoming, deadline: Instant) -> Result<Bytes, PoolClientError> {
        timeout_at(deadline, Limited::new(body, ANSWER_MAX_BYTES).collect())
            .await
            .map_err(|_| PoolClientError::Slow(self.server.clone()))?
            .map(http_body_util::Collected::to_bytes)
            .map_err(|source| self.interrupted(source))
    }

    fn interrupted(&self, source: Box<dyn std::error::Error + Send + Sync>) -> PoolClientError {
        PoolClientError::Interrupted { server: self.server.clone(), source }
    }

    fn wrong_length(&self, wanted_bytes: usize) -> PoolClientError {
        PoolClientError::WrongLength { server: self.server.clone(), wanted_bytes }
    }

    fn garbled(&self, what: &'static str) -> PoolClientError {
        PoolClientError::Garbled { server: self.server.clone(), what }
    }
}

fn path_of(id: PoolId) -> String {
    format!("{POOLS_PATH}/{id}")
}
