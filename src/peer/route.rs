//! One address of a peer: sends calls there, and remembers whether it answers and which pool sets it lacks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use kme::{KmeId, PoolSetId};
use mtls::{HttpsClient, HttpsError, HybridKeyExchange};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::breaker::{Breaker, BreakerState, CallPermit};
use super::error::{PeerError, QUOTA_FULL};
use super::wire::Refusal;

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
/// Characters of a peer's message that are kept.
const MESSAGE_MAX_CHARS: usize = 200;
/// Most sets that are remembered as lacking; more than any source has at once.
const LACKING_MAX: usize = 64;

/// One call, wherever it is sent.
pub(super) struct PeerCall<'a, T> {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) body: Bytes,
    /// The pool set that the call is about.
    pub(super) set: Option<PoolSetId>,
    /// Finds what is wrong with a well-formed answer.
    pub(super) flaw: &'a (dyn Fn(&T) -> Option<&'static str> + Sync),
    /// Whether it may have travelled over a connection without a proven hybrid key exchange. Every address
    /// that was tried counts, not only the one that answered.
    pub(super) unproven: AtomicBool,
    /// How often it was sent, to any address.
    pub(super) sent: AtomicUsize,
}

/// Marks a call as unproven when dropped, unless its connection proved to be hybrid or there was none.
struct Proof<'a>(Option<&'a AtomicBool>);

impl Drop for Proof<'_> {
    fn drop(&mut self) {
        if let Some(unproven) = self.0 {
            unproven.store(true, Ordering::Release);
        }
    }
}

/// One address.
pub(super) struct Route {
    kme: KmeId,
    base: String,
    https: HttpsClient,
    breaker: Breaker,
    lacking: Mutex<VecDeque<PoolSetId>>,
    batches_per_push: AtomicUsize,
}

impl Route {
    /// The address `url` of `kme`: scheme and authority; a path is kept as a prefix.
    pub(super) fn new(kme: KmeId, url: &str, https: HttpsClient, breaker: Breaker) -> Self {
        let base = url.trim_end_matches('/').to_owned();
        Self { kme, base, https, breaker, lacking: Mutex::default(), batches_per_push: AtomicUsize::new(1) }
    }

    /// How many batches of one push the replica there takes, as far as is known.
    pub(super) fn batches_per_push(&self) -> usize {
        self.batches_per_push.load(Ordering::Relaxed)
    }

    /// Notes how many batches of one push it takes.
    pub(super) fn note_batches_per_push(&self, most: usize) {
        self.batches_per_push.store(most.max(1), Ordering::Relaxed);
    }

    pub(super) fn url(&self) -> &str {
        &self.base
    }

    pub(super) fn state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Permission for one call; `None` while the circuit is open.
    pub(super) fn enter(&self) -> Option<CallPermit<'_>> {
        self.breaker.enter()
    }

    /// Whether the replica there said that it cannot get the pools of `set`.
    pub(super) fn lacks(&self, set: PoolSetId) -> bool {
        self.lacking.lock().contains(&set)
    }

    /// Notes how a call went.
    pub(super) fn note<T>(
        &self,
        permit: Option<CallPermit<'_>>,
        set: Option<PoolSetId>,
        result: &Result<T, PeerError>,
    ) {
        if let Some(permit) = permit {
            match result {
                Err(error) if error.is_silence() => permit.failed(),
                _ => permit.answered(),
            }
        }
        let Some(set) = set else { return };
        let mut lacking = self.lacking.lock();
        match result {
            Ok(_) => lacking.retain(|other| *other != set),
            Err(error) if error.refuses_set() && !lacking.contains(&set) => {
                if lacking.len() >= LACKING_MAX {
                    lacking.pop_front();
                }
                lacking.push_back(set);
            }
            Err(_) => {}
        }
    }

    /// Sends the call and reads its answer.
    pub(super) async fn exchange<T: DeserializeOwned>(
        &self,
        call: &PeerCall<'_, T>,
        deadline: Instant,
    ) -> Result<T, PeerError> {
        call.sent.fetch_add(1, Ordering::AcqRel);
        let request = Request::builder()
            .method(&call.method)
            .uri(format!("{}{}", self.base, call.path))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(call.body.clone()))
            .map_err(|_| self.garbled("an address that is not a URL"))?;
        let mut proof = Proof(Some(&call.unproven));
        let sent = timeout_at(deadline, self.https.send(request)).await;
        let sent = sent.map_err(|_| PeerError::Slow(self.kme.clone()))?;
        let is_proven = match &sent {
            Ok(response) => response.extensions().get::<HybridKeyExchange>().is_some_and(|hybrid| hybrid.0),
            Err(error) => matches!(error, HttpsError::Connect(_)),
        };
        if is_proven {
            proof.0 = None;
        }
        let response = sent.map_err(|source| PeerError::Unreachable { kme: self.kme.clone(), source })?;
        let (status, body) = self.receive(response, deadline).await?;
        if status == StatusCode::OK {
            let body =
                serde_json::from_slice(&body).map_err(|_| self.garbled("JSON of an unexpected shape"))?;
            return match (call.flaw)(&body) {
                Some(what) => Err(self.garbled(what)),
                None => Ok(body),
            };
        }
        let kme = self.kme.clone();
        let refusal = refusal_of(&body);
        let trouble = refusal.set_trouble();
        let message = clean(&refusal.message);
        match status {
            StatusCode::SERVICE_UNAVAILABLE => Err(PeerError::Busy { kme, message }),
            QUOTA_FULL => Err(PeerError::Full { kme, message }),
            _ => Err(PeerError::Refused { kme, status, message, trouble }),
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

fn refusal_of(body: &[u8]) -> Refusal {
    serde_json::from_slice(body).unwrap_or_default()
}

/// The message of a refusal, bounded and without control characters.
fn clean(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect()
}
