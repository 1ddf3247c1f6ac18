//! What surrounds every request: a bound on how many, a bound on how long, panics, one log line.
//!
//! A request that has to wait for something is worked on in a task of its own. A client that goes away takes only
//! its answer with it: work that moves keys is never dropped in the middle. What needs no waiting (a key from
//! memory) is done at once, where the request came in, which nothing can interrupt either.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info_span, warn};

use super::error::{ApiError, ErrorCode};
use super::meter::{ListenerMeter, RequestMeters};
use crate::identity::ClientIdentity;

/// What a client should wait when there are too many requests.
const OVERLOAD_RETRY_SECS: u32 = 1;
/// What a client should wait after a request that took too long or failed through a defect.
const FAILURE_RETRY_SECS: u32 = 5;

/// Bounds on the requests of one listener.
#[derive(Clone, Copy, Debug)]
pub struct EdgeLimits {
    /// Most requests in work at once, at least one. More are refused, not queued.
    pub max_concurrent: usize,
    /// The longest that a client waits for an answer.
    pub timeout: Duration,
}

impl EdgeLimits {
    /// The longest that a body may take to arrive: half of the time, the other half is for the work.
    pub fn body_timeout(&self) -> Duration {
        self.timeout / 2
    }
}

/// The edge of one listener: put it around a router with [`guard`].
#[derive(Clone)]
pub struct Edge(Arc<Parts>);

struct Parts {
    listener: &'static str,
    permits: Arc<Semaphore>,
    timeout: Duration,
    tasks: TaskTracker,
    route: fn(&Request) -> &'static str,
    meter: ListenerMeter,
    ends_by_itself: fn(&Request) -> bool,
}

impl Edge {
    /// `listener` names it in logs. Work runs in `tasks`, which a graceful stop waits for. `route` turns a
    /// request into its route template, which is logged and counted in `meters` instead of the path.
    pub fn new(
        listener: &'static str,
        limits: EdgeLimits,
        tasks: TaskTracker,
        route: fn(&Request) -> &'static str,
        meters: &RequestMeters,
    ) -> Self {
        let permits = limits.max_concurrent.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(permits));
        let (timeout, meter) = (limits.timeout, meters.of(listener));
        Self(Arc::new(Parts { listener, permits, timeout, tasks, route, meter, ends_by_itself: |_| false }))
    }

    /// Requests that `ends_by_itself` names bound their own time, and only their own answer is true: a 503 in
    /// their place could say that nothing was used up when it was.
    pub fn without_timeout_for(self, ends_by_itself: fn(&Request) -> bool) -> Self {
        let Parts { listener, permits, timeout, tasks, route, meter, .. } = &*self.0;
        let (listener, timeout, route) = (*listener, *timeout, *route);
        let (permits, tasks, meter) = (Arc::clone(permits), tasks.clone(), meter.clone());
        Self(Arc::new(Parts { listener, permits, timeout, tasks, route, meter, ends_by_itself }))
    }
}

impl Parts {
    async fn run(&self, request: Request, next: Next) -> Response {
        // The permit goes into the task: work whose client is gone still counts.
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return ApiError::unavailable("overloaded", "too many requests", OVERLOAD_RETRY_SECS)
                .into_response();
        };
        let timeout = if (self.ends_by_itself)(&request) { None } else { Some(self.timeout) };
        let span = info_span!("http.request", listener = self.listener);
        let work = async move {
            let response = next.run(request).await;
            drop(permit);
            response
        };
        let mut work: Pin<Box<dyn Future<Output = Response> + Send>> = Box::pin(work.instrument(span));
        let at_once = poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
            Poll::Ready(polled.map_err(drop))
        });
        let waiting = match at_once.await {
            Ok(Poll::Ready(response)) => return response,
            Ok(Poll::Pending) => self.tasks.spawn(work),
            Err(()) => return self.panicked(),
        };
        let ended = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, waiting).await,
            None => Ok(waiting.await),
        };
        match ended {
            Ok(Ok(response)) => response,
            Ok(Err(failed)) if failed.is_panic() => self.panicked(),
            Ok(Err(_)) => failure(),
            Err(_) => ApiError::unavailable("timeout", "the request took too long", FAILURE_RETRY_SECS)
                .into_response(),
        }
    }

    /// The payload may hold anything, keys included; the panic hook knows the place.
    fn panicked(&self) -> Response {
        error!(listener = self.listener, error.code = "panic", "a request panicked");
        failure()
    }
}

fn failure() -> Response {
    ApiError::unavailable("panic", "the KME failed to serve the request", FAILURE_RETRY_SECS).into_response()
}

/// How many members or query names of a served request were not looked at, left in the response's extensions
/// for the log line.
#[derive(Clone, Copy, Debug)]
pub struct IgnoredParts(pub usize);

/// The middleware: `router.layer(axum::middleware::from_fn_with_state(edge, guard))`.
pub async fn guard(State(Edge(edge)): State<Edge>, request: Request, next: Next) -> Response {
    let mut line = RequestLine {
        edge: Arc::clone(&edge),
        method: request.method().clone(),
        route: (edge.route)(&request),
        caller: request.extensions().get::<ClientIdentity>().cloned(),
        started: Instant::now(),
        answer: None,
        ignored: None,
    };
    let response = edge.run(request, next).await;
    let code = response.extensions().get::<ErrorCode>().map(|code| code.0);
    line.answer = Some((response.status(), code));
    line.ignored =
        response.extensions().get::<IgnoredParts>().map(|ignored| ignored.0).filter(|ignored| *ignored > 0);
    response
}

/// Code of a request whose client did not wait for the answer.
const CLIENT_GONE: &str = "client_gone";

/// The log line of one request, written and counted when it is dropped: also when the client did not wait.
struct RequestLine {
    edge: Arc<Parts>,
    method: Method,
    route: &'static str,
    caller: Option<ClientIdentity>,
    started: Instant,
    answer: Option<(StatusCode, Option<&'static str>)>,
    ignored: Option<usize>,
}

impl Drop for RequestLine {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let gone = (None, Some(CLIENT_GONE));
        let (status, code) = self.answer.map_or(gone, |(status, code)| (Some(status), code));
        self.edge.meter.note(&self.method, self.route, status, code, duration);
        macro_rules! line {
            ($level:ident, $status:expr, $code:expr, $text:literal) => {
                $level!(
                    listener = self.edge.listener,
                    http.method = %self.method,
                    http.route = self.route,
                    http.status = $status,
                    error.code = $code,
                    http.ignored = self.ignored,
                    caller = self.caller.as_ref().and_then(ClientIdentity::name),
                    duration_ms = duration.as_secs_f64() * 1e3,
                    $text
                )
            };
        }
        match self.answer {
            None => line!(warn, None::<u16>, CLIENT_GONE, "the client did not wait for the answer"),
            Some((status, code)) if status.is_client_error() || status.is_server_error() => {
                line!(warn, status.as_u16(), code, "request failed");
            }
            Some((status, code)) => line!(debug, status.as_u16(), code, "request served"),
        }
    }
}

#[cfg(test)]
mod tests;
