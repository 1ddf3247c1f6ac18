//! What surrounds every request: a bound on how many, a bound on how long, panics, one log line.
//!
//! Each request is polled once where it arrives. If that answers it (a key from memory), no task is needed. Otherwise it
//! moves into a task of its own: if the client disconnects, its answer is lost; the work is not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::Method;
use mtls::identity::ClientIdentity;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, error, info_span, warn};

use super::error::{ApiError, ErrorCode};
use super::meter::{ListenerMeter, RequestMeters};

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
    max_concurrent: usize,
    /// Requests in work. Only ever counted, so nothing has to be locked when one ends.
    in_work: AtomicUsize,
    timeout: Duration,
    tasks: TaskTracker,
    meter: ListenerMeter,
    /// What is logged in the course of a request stands in it. One for all requests: it says nothing of any one.
    span: Span,
}

/// A request before anything is done for it.
pub(super) struct About<'a> {
    pub(super) method: Method,
    /// Its route template, which is logged and counted instead of the path.
    pub(super) route: &'static str,
    pub(super) caller: Option<&'a ClientIdentity>,
    /// It bounds its own time, and only its own answer is true: a 503 in its place could say that nothing was used up
    /// when it was.
    pub(super) ends_by_itself: bool,
}

impl Edge {
    /// `listener` names it in logs. Work runs in `tasks`, which a graceful stop waits for. Requests are counted in
    /// `meters`.
    pub fn new(
        listener: &'static str,
        limits: EdgeLimits,
        tasks: TaskTracker,
        meters: &RequestMeters,
    ) -> Self {
        Self(Arc::new(Parts {
            listener,
            max_concurrent: limits.max_concurrent.max(1),
            in_work: AtomicUsize::new(0),
            timeout: limits.timeout,
            tasks,
            meter: meters.of(listener),
            span: info_span!("http.request", listener),
        }))
    }

    /// Serves one request: polls `work` here and now; if it has to wait, it goes on in a task of its own.
    pub(super) fn serve(
        &self,
        about: About<'_>,
        work: impl Future<Output = Response> + Send + 'static,
    ) -> Serving {
        let started = Instant::now();
        let begun = match Place::take(&self.0) {
            Some(place) => self.0.begin(place, Box::pin(work)),
            None => Begun::Answered(
                ApiError::unavailable("overloaded", "too many requests", OVERLOAD_RETRY_SECS).into_response(),
            ),
        };
        let waiting = match begun {
            Begun::Answered(response) => {
                self.0.note(&about, started, Some(&response));
                return Serving::Answered(response);
            }
            Begun::Waits(waiting) => waiting,
        };
        let (edge, caller) = (Arc::clone(&self.0), about.caller.cloned());
        Serving::Waits(Box::pin(async move {
            let about = About { caller: caller.as_ref(), ..about };
            let ends_by_itself = about.ends_by_itself;
            let mut line = RequestLine { edge: &edge, about, started, is_written: false };
            let response = edge.wait(ends_by_itself, waiting).await;
            line.write(Some(&response));
            response
        }))
    }
}

/// An answer that is there, or one that is waited for.
#[derive(Default)]
pub enum Serving {
    /// It is there.
    Answered(Response),
    /// It will be.
    Waits(BoxFuture<'static, Response>),
    /// It was given.
    #[default]
    Over,
}

impl Future for Serving {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        if let Self::Waits(waits) = &mut *self {
            return waits.as_mut().poll(context);
        }
        match std::mem::take(&mut *self) {
            Self::Answered(response) => Poll::Ready(response),
            _ => Poll::Pending,
        }
    }
}

/// One of the requests that may be in work at once.
struct Place(Arc<Parts>);

impl Place {
    /// `None` when all are taken.
    fn take(edge: &Arc<Parts>) -> Option<Self> {
        let place = Self(Arc::clone(edge));
        let before = edge.in_work.fetch_add(1, Ordering::Relaxed);
        (before < edge.max_concurrent).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request after its first poll.
enum Begun {
    Answered(Response),
    Waits(JoinHandle<Response>),
}

impl Parts {
    fn begin(
        &self,
        place: Place,
        mut work: Pin<Box<impl Future<Output = Response> + Send + 'static>>,
    ) -> Begun {
        // Nobody needs to be woken: the task polls again.
        let mut context = Context::from_waker(Waker::noop());
        match catch_unwind(AssertUnwindSafe(|| self.span.in_scope(|| work.as_mut().poll(&mut context)))) {
            Ok(Poll::Ready(response)) => Begun::Answered(response),
            Ok(Poll::Pending) => {
                // The place goes into the task: work whose client is gone still counts.
                let work = async move {
                    let _place = place;
                    work.await
                };
                Begun::Waits(self.tasks.spawn(work.instrument(self.span.clone())))
            }
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

    /// The payload may hold anything, keys included; the panic hook knows the place.
    fn panicked(&self) -> Response {
        error!(listener = self.listener, error.code = "panic", "a request panicked");
        failure()
    }
}

fn failure() -> Response {
    ApiError::unavailable("panic", "the KME failed to serve the request", FAILURE_RETRY_SECS).into_response()
}

/// How many members or query names of a served request were not looked at, if any, left in the response's
/// extensions for the log line.
#[derive(Clone, Copy, Debug)]
pub struct IgnoredParts(pub usize);

/// From a request to its route template.
pub type Template = fn(&Request) -> &'static str;

/// The middleware: `router.layer(axum::middleware::from_fn_with_state((edge, template), guard))`.
pub async fn guard(
    State((edge, template)): State<(Edge, Template)>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<ClientIdentity>().cloned();
    let about = About {
        method: request.method().clone(),
        route: template(&request),
        caller: caller.as_ref(),
        ends_by_itself: false,
    };
    edge.serve(about, next.run(request)).await
}

/// Code of a request whose client did not wait for the answer.
const CLIENT_GONE: &str = "client_gone";

/// The end of one request that waits, noted once: also when the client did not wait for it.
struct RequestLine<'a> {
    edge: &'a Parts,
    about: About<'a>,
    started: Instant,
    is_written: bool,
}

impl RequestLine<'_> {
    fn write(&mut self, answer: Option<&Response>) {
        if !std::mem::replace(&mut self.is_written, true) {
            self.edge.note(&self.about, self.started, answer);
        }
    }
}

impl Drop for RequestLine<'_> {
    fn drop(&mut self) {
        self.write(None);
    }
}

impl Parts {
    /// The log line of one request, and its count. No answer: its client did not wait.
    fn note(&self, about: &About<'_>, started: Instant, answer: Option<&Response>) {
        let duration = started.elapsed();
        let About { method, route, caller, .. } = about;
        let code = answer.and_then(|answer| answer.extensions().get::<ErrorCode>()).map(|code| code.0);
        let code = if answer.is_none() { Some(CLIENT_GONE) } else { code };
        let ignored =
            answer.and_then(|answer| answer.extensions().get::<IgnoredParts>()).map(|parts| parts.0);
        let status = answer.map(Response::status);
        self.meter.note(method, route, status, code, duration);
        macro_rules! line {
            ($level:ident, $text:literal) => {
                $level!(
                    listener = self.listener,
                    http.method = %method,
                    http.route = route,
                    http.status = status.map(|status| status.as_u16()),
                    error.code = code,
                    http.ignored = ignored,
                    caller = caller.and_then(ClientIdentity::name),
                    duration_ms = duration.as_secs_f64() * 1e3,
                    $text
                )
            };
        }
        match status {
            None => line!(warn, "the client did not wait for the answer"),
            Some(status) if status.is_client_error() || status.is_server_error() => {
                line!(warn, "request failed");
            }
            Some(_) => line!(debug, "request served"),
        }
    }
}

#[cfg(test)]
mod tests;
