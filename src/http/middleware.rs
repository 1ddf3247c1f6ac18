//! The guard around every request: shares places and time among identities, catches panics, adds `no-store`,
//! writes one log line.
//!
//! A request takes a place only when its whole body is here. Bodies that are still arriving share a bounded
//! memory of their own. Both are shared by identity ([`FairShares`]), so nobody can take what others need.
//!
//! Each request is polled once in the connection's task. If that answers it (a key from memory), it needs no
//! other task. Otherwise it moves to its own task: if the client disconnects, the answer is lost, but the
//! work is completed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::response::{IntoResponse, Response};
use futures_util::poll;
use http::{HeaderValue, Method, header};
use kme::{FairShares, Holder, Taken};
use mtls::SparingLog;
use mtls::identity::ClientIdentity;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, error, info, info_span, warn};
use zeroize::Zeroizing;

use super::error::{ApiError, Cause, ErrorCode};
use super::json;
use super::limits::{Account, Clients};
use super::meter::{ListenerMeter, RequestMeters};

/// `Retry-After` when there are too many requests.
const OVERLOAD_RETRY_SECS: u32 = 1;
/// `Retry-After` of a request that took too long or failed through a defect.
const FAILURE_RETRY_SECS: u32 = 5;
/// Most memory of bodies that are still arriving at one listener, in all; more if four of the largest need
/// it.
const ARRIVING_MAX_BYTES: usize = 32 * 1024 * 1024;
/// A body that is arriving counts as at least this long.
const ARRIVING_LEAST_BYTES: usize = 1024;

/// Bounds on the requests of one listener.
#[derive(Clone, Copy, Debug)]
pub struct EdgeLimits {
    /// Most requests in progress, at least one. More are refused, not queued. One identity alone gets half of
    /// them, n busy ones get one part in n + 1 each.
    pub max_concurrent: usize,
    /// Longest time that a client waits for an answer.
    pub timeout: Duration,
}

impl EdgeLimits {
    /// Longest time for a body to arrive: half of the timeout. The other half is for the work.
    fn body_timeout(&self) -> Duration {
        self.timeout / 2
    }
}

/// The guard of one listener.
#[derive(Clone)]
pub(super) struct Edge(Arc<Parts>);

struct Parts {
    clients: Arc<Clients>,
    /// Requests in progress.
    places: FairShares<String>,
    /// Bytes of bodies that are arriving.
    arriving: FairShares<String>,
    body_max_bytes: usize,
    body_timeout: Duration,
    timeout: Duration,
    tasks: TaskTracker,
    meter: ListenerMeter,
    /// Surrounds everything that is logged for a request. Shared by all requests, because it names only the
    /// listener.
    span: Span,
    log: SparingLog,
}

/// The client of one connection: its part of what the listener has.
pub(super) struct Client {
    identity: ClientIdentity,
    account: Arc<Account>,
    place: Holder,
    arriving: Holder,
}

impl Client {
    pub(super) fn identity(&self) -> &ClientIdentity {
        &self.identity
    }
}

/// A request as it arrives.
pub(super) struct About {
    pub(super) method: Method,
    /// Its route template: logged and counted instead of the path, which holds IDs.
    pub(super) route: &'static str,
    /// The request has its own time limits, so the timeout does not apply: a 503 from the guard could claim
    /// that nothing was used up when it was.
    pub(super) ends_by_itself: bool,
}

impl Edge {
    /// The guard of the listener of `clients`. No body has more than `body_max_bytes`. A graceful stop waits
    /// for `tasks`.
    pub(super) fn new(
        clients: Arc<Clients>,
        limits: EdgeLimits,
        body_max_bytes: usize,
        tasks: TaskTracker,
        meters: &RequestMeters,
    ) -> Self {
        let listener = clients.listener();
        Self(Arc::new(Parts {
            places: FairShares::new(limits.max_concurrent),
            arriving: FairShares::new(ARRIVING_MAX_BYTES.max(body_max_bytes.saturating_mul(4))),
            body_max_bytes,
            body_timeout: limits.body_timeout(),
            timeout: limits.timeout,
            tasks,
            meter: meters.of(listener),
            span: info_span!("http.request", listener),
            log: SparingLog::new(listener),
            clients,
        }))
    }

    /// The client of a new connection.
    pub(super) fn client(&self, identity: ClientIdentity) -> Arc<Client> {
        let name = identity.name().unwrap_or_default().to_owned();
        let account = self.0.clients.account(&name);
        let (place, arriving) = (self.0.places.holder(&name), self.0.arriving.holder(&name));
        Arc::new(Client { identity, account, place, arriving })
    }

    /// Most connections of that identity at once.
    pub(super) fn connections_max(&self, identity: &ClientIdentity) -> usize {
        self.0.clients.connections_max(identity.name().unwrap_or_default())
    }

    /// Notes that this identity was refused a connection.
    pub(super) fn note_refused(&self, identity: &ClientIdentity) {
        self.0.clients.note(identity.name().unwrap_or_default(), "connections");
    }

    /// Takes `number` keys of what `client` may have.
    ///
    /// # Errors
    /// 503 with the time until that many are allowed.
    pub(super) fn take_keys(&self, client: &Client, number: usize) -> Result<(), ApiError> {
        self.0.clients.take_keys(&client.account, number)
    }

    /// Reads the whole `body` into a buffer that is wiped when dropped, then takes a place among the requests
    /// in progress. Every request does this before its work; the work keeps the place until it ends. A body
    /// that is here already is read at the first poll.
    ///
    /// # Errors
    /// 503 when the client has its share of places, or of bodies that are arriving, or when the body is too
    /// slow. 413 or 400 for a body that is too long or incomplete.
    pub(super) async fn enter(
        &self,
        client: &Client,
        body: Option<Body>,
    ) -> Result<(Zeroizing<Vec<u8>>, Taken), ApiError> {
        let body = match body {
            Some(body) => self.arrive(client, body).await?,
            None => Zeroizing::default(),
        };
        let place = client.place.take(1).ok_or_else(|| overloaded("too many requests"))?;
        Ok((body, place))
    }

    async fn arrive(&self, client: &Client, body: Body) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let max_bytes = self.0.body_max_bytes;
        let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = announced.map_or(max_bytes, |bytes| bytes.min(max_bytes)).max(ARRIVING_LEAST_BYTES);
        let mut reading = pin!(json::read_body(body, max_bytes));
        if let Poll::Ready(body) = poll!(reading.as_mut()) {
            return body;
        }
        let _share = client.arriving.take(bytes).ok_or_else(|| overloaded("too many request bodies"))?;
        // The work may go on after the request's timeout, so the body needs its own.
        tokio::time::timeout(self.0.body_timeout, reading).await.map_err(|_| ApiError::body_slow())?
    }

    /// Serves one request: polls `work` now. If it has to wait, it continues in its own task. `work` begins
    /// with [`Self::enter`].
    pub(super) fn serve<W: Future<Output = Response> + Send + 'static>(
        &self,
        about: About,
        client: &Arc<Client>,
        work: W,
    ) -> impl Future<Output = Response> + Send + use<W> {
        let started = Instant::now();
        let begun = match self.0.clients.take_request(&client.account) {
            Ok(()) => self.0.begin(Box::pin(work)),
            Err(error) => Begun::Answered(error.into_response()),
        };
        let waits = match begun {
            Begun::Answered(response) => {
                self.0.note(&about, client.identity(), started, Some(&response));
                Err(response)
            }
            Begun::Waits(task) => Ok((Arc::clone(&self.0), Arc::clone(client), task)),
        };
        async move {
            let (edge, client, task) = match waits {
                Ok(waits) => waits,
                Err(response) => return no_store(response),
            };
            let ends_by_itself = about.ends_by_itself;
            let caller = client.identity();
            let mut line = RequestLine { edge: &edge, about, caller, started, is_written: false };
            let response = edge.wait(ends_by_itself, task).await;
            line.write(Some(&response));
            no_store(response)
        }
    }
}

fn overloaded(message: &'static str) -> ApiError {
    ApiError::unavailable("overloaded", message, OVERLOAD_RETRY_SECS)
}

/// A request after its first poll.
enum Begun {
    Answered(Response),
    Waits(JoinHandle<Response>),
}

impl Parts {
    fn begin(&self, mut work: Pin<Box<impl Future<Output = Response> + Send + 'static>>) -> Begun {
        // A lost wake-up does no harm: the task polls again.
        let mut context = Context::from_waker(Waker::noop());
        match catch_unwind(AssertUnwindSafe(|| self.span.in_scope(|| work.as_mut().poll(&mut context)))) {
            Ok(Poll::Ready(response)) => Begun::Answered(response),
            // Its place moves too: the work counts even after its client has disconnected.
            Ok(Poll::Pending) => Begun::Waits(self.tasks.spawn(work.instrument(self.span.clone()))),
            Err(_) => Begun::Answered(self.panicked()),
        }
    }

    async fn wait(&self, ends_by_itself: bool, waiting: JoinHandle<Response>) -> Response {
        let ended = if ends_by_itself {
            Ok(waiting.await)
        } else {
            tokio::time::timeout(self.timeout, waiting).await
        };
        match ended {
            Ok(Ok(response)) => response,
            Ok(Err(failed)) if failed.is_panic() => self.panicked(),
            Ok(Err(_)) => failure(),
            Err(_) => ApiError::unavailable("timeout", "the request took too long", FAILURE_RETRY_SECS)
                .into_response(),
        }
    }

    /// Logs a panic without its text, which may hold a secret. The panic hook has logged the place.
    fn panicked(&self) -> Response {
        error!(listener = self.clients.listener(), error.code = "panic", "a request panicked");
        failure()
    }
}

/// Applied to every answer, since most hold keys: no cache on the way may keep a copy.
fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn failure() -> Response {
    ApiError::unavailable("panic", "the KME failed to serve the request", FAILURE_RETRY_SECS).into_response()
}

/// How many members or query names of the request were ignored, left in the extensions of the response for
/// its log line.
#[derive(Clone, Copy, Debug)]
pub(super) struct IgnoredParts(pub(super) usize);

/// Code of a request whose client disconnected before the answer.
const CLIENT_GONE: &str = "client_gone";

/// Writes the log line of a request that waits, once: with its answer, or when dropped without one.
struct RequestLine<'a> {
    edge: &'a Parts,
    about: About,
    caller: &'a ClientIdentity,
    started: Instant,
    is_written: bool,
}

impl RequestLine<'_> {
    fn write(&mut self, answer: Option<&Response>) {
        if !std::mem::replace(&mut self.is_written, true) {
            self.edge.note(&self.about, self.caller, self.started, answer);
        }
    }
}

impl Drop for RequestLine<'_> {
    fn drop(&mut self) {
        self.write(None);
    }
}

impl Parts {
    /// Logs and counts one request. `None`: its client disconnected first.
    fn note(&self, about: &About, caller: &ClientIdentity, started: Instant, answer: Option<&Response>) {
        let duration = started.elapsed();
        let About { method, route, .. } = about;
        let code = answer.and_then(|answer| answer.extensions().get::<ErrorCode>()).map(|code| code.0);
        let code = if answer.is_none() { Some(CLIENT_GONE) } else { code };
        let cause = answer.and_then(|answer| answer.extensions().get::<Cause>());
        let ignored =
            answer.and_then(|answer| answer.extensions().get::<IgnoredParts>()).map(|parts| parts.0);
        let status = answer.map(Response::status);
        self.meter.note(method, route, status, code, duration);
        macro_rules! line {
            ($level:ident, $text:literal) => {
                $level!(
                    listener = self.clients.listener(),
                    http.method = %method,
                    http.route = route,
                    http.status = status.map(|status| status.as_u16()),
                    error.code = code,
                    error = cause.map(|cause| &*cause.0),
                    http.ignored = ignored,
                    caller = caller.name(),
                    duration_ms = duration.as_secs_f64() * 1e3,
                    $text
                )
            };
        }
        if status.is_some_and(|status| !status.is_client_error() && !status.is_server_error()) {
            return line!(debug, "request served");
        }
        // A client can repeat these as often as it likes.
        let is_worth_a_line = self.log.allows(caller.name().unwrap_or_default(), code.unwrap_or("none"));
        match status {
            _ if !is_worth_a_line => line!(debug, "request failed"),
            None => line!(info, "the client disconnected before the answer"),
            Some(status) if status.is_client_error() => line!(info, "request refused"),
            Some(_) => line!(warn, "request failed"),
        }
    }
}

#[cfg(test)]
mod tests;
