//! The guard around every request: bounds their number and time, catches panics, adds `no-store`, writes one
//! log line.
//!
//! Each request is polled once in the connection's task. If that answers it (a key from memory), it needs no
//! other task. Otherwise it moves to its own task: if the client disconnects, the answer is lost, but the
//! work is completed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, header};
use mtls::identity::ClientIdentity;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, error, info_span, warn};

use super::error::{ApiError, ErrorCode};
use super::meter::{ListenerMeter, RequestMeters};

/// `Retry-After` when there are too many requests.
const OVERLOAD_RETRY_SECS: u32 = 1;
/// `Retry-After` of a request that took too long or failed through a defect.
const FAILURE_RETRY_SECS: u32 = 5;

/// Bounds on the requests of one listener.
#[derive(Clone, Copy, Debug)]
pub struct EdgeLimits {
    /// Most requests in progress, at least one. More are refused, not queued.
    pub max_concurrent: usize,
    /// Longest time that a client waits for an answer.
    pub timeout: Duration,
}

impl EdgeLimits {
    /// Longest time for a body to arrive: half of the timeout. The other half is for the work.
    pub(super) fn body_timeout(&self) -> Duration {
        self.timeout / 2
    }
}

/// The guard of one listener. [`guard`] puts it around a router.
#[derive(Clone)]
pub(super) struct Edge(Arc<Parts>);

struct Parts {
    listener: &'static str,
    max_concurrent: usize,
    /// Requests in progress.
    in_work: AtomicUsize,
    timeout: Duration,
    tasks: TaskTracker,
    meter: ListenerMeter,
    /// Surrounds everything that is logged for a request. Shared by all requests, because it names only the
    /// listener.
    span: Span,
}

/// A request as it arrives.
pub(super) struct About<'a> {
    pub(super) method: Method,
    /// Its route template: logged and counted instead of the path, which holds IDs.
    pub(super) route: &'static str,
    pub(super) caller: Option<&'a ClientIdentity>,
    /// The request has its own time limits, so the timeout does not apply: a 503 from the guard could claim
    /// that nothing was used up when it was.
    pub(super) ends_by_itself: bool,
}

impl Edge {
    /// `listener` is its name in logs. A graceful stop waits for `tasks`.
    pub(super) fn new(
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

    /// Serves one request: polls `work` now. If it has to wait, it continues in its own task.
    pub(super) fn serve<W: Future<Output = Response> + Send + 'static>(
        &self,
        about: About<'_>,
        work: W,
    ) -> impl Future<Output = Response> + Send + use<W> {
        let started = Instant::now();
        let begun = match Place::take(&self.0) {
            Some(place) => self.0.begin(place, Box::pin(work)),
            None => Begun::Answered(
                ApiError::unavailable("overloaded", "too many requests", OVERLOAD_RETRY_SECS).into_response(),
            ),
        };
        let waits = match begun {
            Begun::Answered(response) => {
                self.0.note(&about, started, Some(&response));
                Err(response)
            }
            Begun::Waits(task) => Ok((Arc::clone(&self.0), about.caller.cloned(), task)),
        };
        let About { method, route, ends_by_itself, .. } = about;
        async move {
            let (edge, caller, task) = match waits {
                Ok(waits) => waits,
                Err(response) => return no_store(response),
            };
            let about = About { method, route, caller: caller.as_ref(), ends_by_itself };
            let mut line = RequestLine { edge: &edge, about, started, is_written: false };
            let response = edge.wait(ends_by_itself, task).await;
            line.write(Some(&response));
            no_store(response)
        }
    }
}

/// A place among the requests in progress, freed when dropped.
struct Place(Arc<Parts>);

impl Place {
    /// `None` if all are taken.
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
        // A lost wake-up does no harm: the task polls again.
        let mut context = Context::from_waker(Waker::noop());
        match catch_unwind(AssertUnwindSafe(|| self.span.in_scope(|| work.as_mut().poll(&mut context)))) {
            Ok(Poll::Ready(response)) => Begun::Answered(response),
            Ok(Poll::Pending) => {
                // The place moves too: the work counts even after its client has disconnected.
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

    /// Logs a panic without its text, which may hold a secret. The panic hook has logged the place.
    fn panicked(&self) -> Response {
        error!(listener = self.listener, error.code = "panic", "a request panicked");
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

/// Finds the route template of a request.
pub(super) type Template = fn(&Request) -> &'static str;

/// The middleware: `router.layer(axum::middleware::from_fn_with_state((edge, template), guard))`.
pub(super) async fn guard(
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

/// Code of a request whose client disconnected before the answer.
const CLIENT_GONE: &str = "client_gone";

/// Writes the log line of a request that waits, once: with its answer, or when dropped without one.
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
    /// Logs and counts one request. `None`: its client disconnected first.
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
            None => line!(warn, "the client disconnected before the answer"),
            Some(status) if status.is_client_error() || status.is_server_error() => {
                line!(warn, "request failed");
            }
            Some(_) => line!(debug, "request served"),
        }
    }
}

#[cfg(test)]
mod tests;
