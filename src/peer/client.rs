//! The client of one peer, which may have several addresses.
//!
//! Calls share one HTTP/2 connection for each address. A call has a deadline. If an address fails, the call
//! goes to another. If all fail for a reason that may pass, it is repeated after a pause. While the circuit
//! of every address is open, it fails at once. Every call is safe to repeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use kme::{Backoff, KmeId, PoolSetId, Random};
use mtls::HttpsClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::breaker::{Breaker, BreakerState};
use super::error::PeerError;
use super::failover::{Pass, in_order};
use super::meter::{PeerMeter, PeerMeters};
use super::route::{PeerCall, Route};
use super::wire::{
    BATCHES_PATH, BatchMetadata, BatchStored, COMPARISON_PATH, ComparisonAnswer, ComparisonRequest,
    INFO_PATH, Info, POOL_SETS_PATH, SetReady, VOID_PATH, VoidAnswer, VoidRequest, encode,
};
use crate::pool::AnnouncedSet;

/// How often one call is tried: a second time for a connection that had died unnoticed, a third for a
/// restart.
const ATTEMPTS_MAX: u32 = 3;
/// Pause before a call is repeated.
const RETRY_PAUSE: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(100));
/// After an address was silent for this part of a call's time, the next one is asked in parallel.
const PATIENCE_PART: u32 = 5;

/// Bounds of one peer's client.
#[derive(Clone, Copy, Debug)]
pub struct PeerClientSettings {
    /// Longest time for a call, including repetitions and the wait while `max_in_flight` others are under
    /// way.
    pub timeout: Duration,
    /// Most calls under way at once; more wait.
    pub max_in_flight: usize,
}

/// A batch that a peer has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Whether every connection that may have carried the metadata had a hybrid post-quantum key exchange.
    pub hybrid_tls: bool,
}

/// A push that was not acknowledged.
#[derive(Debug)]
pub struct NotPushed {
    /// Why.
    pub error: PeerError,
    /// Whether the peer may have stored the keys nevertheless, or may still do so: then
    /// [`PeerClient::void`] them. Not if the push never left this site, or its only copy was refused.
    pub may_be_stored: bool,
}

/// Calls one configured peer.
pub struct PeerClient {
    kme: KmeId,
    routes: Vec<Route>,
    /// Where the next call begins to look for a route.
    next_route: AtomicUsize,
    settings: PeerClientSettings,
    in_flight: Semaphore,
    random: Arc<dyn Random>,
    meter: PeerMeter,
}

impl PeerClient {
    /// A client of the peer at `urls` (scheme and authority; a path is kept as a prefix): its replicas, or
    /// one address for all of them.
    pub fn new(
        kme: KmeId,
        urls: &[&str],
        https: &HttpsClient,
        settings: PeerClientSettings,
        random: Arc<dyn Random>,
    ) -> Self {
        let breaker = || Breaker::new(Arc::clone(&random));
        let route = |url: &&str| Route::new(kme.clone(), url, https.clone(), breaker());
        let routes = urls.iter().map(route).collect();
        let in_flight = Semaphore::new(settings.max_in_flight.clamp(1, Semaphore::MAX_PERMITS));
        let meter = PeerMeters::default().of(&kme);
        Self { kme, routes, next_route: AtomicUsize::new(0), settings, in_flight, random, meter }
    }

    /// The same client, whose calls `meters` count.
    pub fn metered(self, meters: &PeerMeters) -> Self {
        Self { meter: meters.of(&self.kme), ..self }
    }

    /// The peer's ID.
    pub fn kme(&self) -> &KmeId {
        &self.kme
    }

    /// Its addresses, in the order of the configuration, and whether they are being called.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, BreakerState)> {
        self.routes.iter().map(|route| (route.url(), route.state()))
    }

    /// Whether the peer is being called, at any address.
    pub fn breaker(&self) -> BreakerState {
        let is_any = |wanted| self.routes.iter().any(|route| route.state() == wanted);
        if is_any(BreakerState::Closed) {
            BreakerState::Closed
        } else if is_any(BreakerState::Trying) {
            BreakerState::Trying
        } else {
            BreakerState::Open
        }
    }

    /// Announces a pool set at every address. Returns when one replica has downloaded it and the others have
    /// had a moment to do so. A replica that missed it downloads it with the first batch.
    ///
    /// # Errors
    /// [`PeerError`]; no replica has it.
    pub async fn announce(self: &Arc<Self>, set: &AnnouncedSet) -> Result<(), PeerError> {
        let body = encode(set).map_err(|_| self.unwritable())?;
        let mut running = JoinSet::new();
        for place in 0..self.routes.len() {
            let (client, body, id) = (Arc::clone(self), body.clone(), set.id);
            running.spawn(async move {
                let call = PeerCall::<SetReady> {
                    method: Method::POST,
                    path: POOL_SETS_PATH,
                    body,
                    set: Some(id),
                    flaw: &|_| None,
                    unproven: AtomicBool::new(false),
                    sent: AtomicUsize::new(0),
                };
                client.call(Some(place), &call).await.map(drop)
            });
        }
        let mut failure = PeerError::Paused(self.kme.clone());
        let mut moment = None;
        while let Some(joined) = match moment {
            None => running.join_next().await,
            Some(until) => timeout_at(until, running.join_next()).await.ok().flatten(),
        } {
            match joined {
                Ok(Ok(())) if moment.is_none() => moment = Some(Instant::now() + self.patience()),
                Ok(Err(error)) if error.weight() >= failure.weight() => failure = error,
                _ => {}
            }
        }
        running.detach_all();
        if moment.is_some() { Ok(()) } else { Err(failure) }
    }

    /// Pushes batches of one pool set, at least one, at most [`Self::batches_per_push`]. Returns when the peer has
    /// stored their keys durably.
    ///
    /// # Errors
    /// [`NotPushed`] says whether the peer may have stored the keys nevertheless.
    pub async fn push(&self, batches: &[BatchMetadata]) -> Result<Pushed, NotPushed> {
        const OF_SOMETHING_ELSE: &str = "an acknowledgement of something else";
        let is_of = |stored: &BatchStored, batch: &BatchMetadata| {
            stored.batch_id == batch.batch_id && stored.keys == batch.key_ids.len()
        };
        let set = batches.first().map(|batch| batch.pool_set.id);
        let hybrid_tls = if let [batch] = batches {
            let flaw = |stored: &BatchStored| (!is_of(stored, batch)).then_some(OF_SOMETHING_ELSE);
            self.post(BATCHES_PATH, batch, set, &flaw).await?.1
        } else {
            let flaw = |stored: &Vec<BatchStored>| {
                let is_right = stored.len() == batches.len()
                    && stored.iter().zip(batches).all(|(stored, batch)| is_of(stored, batch));
                (!is_right).then_some(OF_SOMETHING_ELSE)
            };
            self.post(BATCHES_PATH, &batches, set, &flaw).await?.1
        };
        Ok(Pushed { hybrid_tls })
    }

    /// How many batches one push may have: what every replica of the peer said that it takes, or one.
    pub fn batches_per_push(&self) -> usize {
        self.routes.iter().map(Route::batches_per_push).min().unwrap_or(1)
    }

    /// Compares the pools of a set that the peer discarded after a mismatch. Only the replica that discarded
    /// it can answer; the others are asked in vain.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn compare(&self, request: &ComparisonRequest) -> Result<ComparisonAnswer, PeerError> {
        let answer = self.post(COMPARISON_PATH, request, None, &|_| None).await;
        answer.map(|(answer, _)| answer).map_err(|failed| failed.error)
    }

    /// Voids keys that nobody retrieved, and the batch itself if it arrives later.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn void(&self, request: &VoidRequest) -> Result<VoidAnswer, PeerError> {
        let answer = self.post(VOID_PATH, request, None, &|_| None).await;
        answer.map(|(answer, _)| answer).map_err(|failed| failed.error)
    }

    /// Who answers at the address number `place` of the configuration; it must be the peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn info_at(&self, place: usize) -> Result<Info, PeerError> {
        let flaw = |info: &Info| (info.kme_id != self.kme).then_some("the name of another KME");
        let unproven = AtomicBool::new(false);
        let (method, path, body, sent) = (Method::GET, INFO_PATH, Bytes::new(), AtomicUsize::new(0));
        let call = PeerCall { method, path, body, set: None, flaw: &flaw, unproven, sent };
        let info = self.call(Some(place), &call).await;
        if let (Ok(info), Some(route)) = (&info, self.routes.get(place)) {
            route.note_batches_per_push(info.limits.max_batches_per_push);
        }
        info
    }

    /// The answer, and whether every connection that may have carried the call was hybrid.
    async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: &impl Serialize,
        set: Option<PoolSetId>,
        flaw: &(dyn Fn(&T) -> Option<&'static str> + Sync),
    ) -> Result<(T, bool), NotPushed> {
        let body = encode(body).map_err(|_| NotPushed { error: self.unwritable(), may_be_stored: false })?;
        let (method, unproven, sent) = (Method::POST, AtomicBool::new(false), AtomicUsize::new(0));
        let call = PeerCall { method, path, body, set, flaw, unproven, sent };
        match self.call(None, &call).await {
            Ok(answer) => Ok((answer, !call.unproven.load(Ordering::Acquire))),
            Err(error) => {
                let only_copy_refused =
                    error.says_nothing_is_stored() && call.sent.load(Ordering::Acquire) == 1;
                let may_be_stored = !error.was_not_sent() && !only_copy_refused;
                Err(NotPushed { error, may_be_stored })
            }
        }
    }

    /// Sends a call to the address in one place, or to any that serves it.
    async fn call<T: DeserializeOwned>(
        &self,
        place: Option<usize>,
        call: &PeerCall<'_, T>,
    ) -> Result<T, PeerError> {
        let started = Instant::now();
        let result = self.call_in_time(place, call).await;
        self.meter.note(call.path, &result, started.elapsed());
        result
    }

    async fn call_in_time<T: DeserializeOwned>(
        &self,
        place: Option<usize>,
        call: &PeerCall<'_, T>,
    ) -> Result<T, PeerError> {
        let deadline = Instant::now() + self.settings.timeout;
        let slow = || PeerError::Slow(self.kme.clone());
        let _permit = timeout_at(deadline, self.in_flight.acquire()).await.map_err(|_| slow())?;
        if Instant::now() >= deadline {
            return Err(slow());
        }
        let mut attempts = 1;
        let mut sent: Option<PeerError> = None;
        loop {
            let routes = match place {
                Some(place) => self.routes.get(place).into_iter().collect(),
                None => in_order(&self.routes, self.next_route.fetch_add(1, Ordering::Relaxed), call),
            };
            let pass = Pass { kme: &self.kme, routes, deadline, patience: self.patience() };
            let error = match pass.run(call).await {
                Ok(answer) => return Ok(answer),
                // The circuit opened between two attempts, but the first may have arrived.
                Err(error) if error.was_not_sent() => return Err(sent.unwrap_or(error)),
                Err(error) => error,
            };
            let again = Instant::now() + RETRY_PAUSE.jittered(attempts, &*self.random);
            if attempts == ATTEMPTS_MAX || !error.is_passing() || again >= deadline {
                return Err(error);
            }
            tracing::debug!(
                peer = %self.kme, error = &error as &dyn std::error::Error,
                "repeating a call to a peer"
            );
            self.meter.note_repeat();
            sleep_until(again).await;
            attempts += 1;
            sent = Some(error);
        }
    }

    fn patience(&self) -> Duration {
        self.settings.timeout / PATIENCE_PART
    }

    fn unwritable(&self) -> PeerError {
        PeerError::Garbled { kme: self.kme.clone(), what: "a request that cannot be encoded" }
    }
}
