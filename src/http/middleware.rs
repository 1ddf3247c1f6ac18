//! What surrounds every request: a bound on how many, a bound on how long, panics, one log line.
//!
//! A request that has to wait for something is worked on in a task of its own. A client that goes away takes only
//! its answer with it: work that moves keys is never dropped in the middle. What needs no waiting (a key from
//! memory) is done at once, where the request came in, which nothing can interrupt either.

use std::future::poll_fn;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, error, info_span, warn};

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
    max_concurrent: usize,
    /// Requests in work. Only ever counted, so nothing has to be locked when one ends.
    in_work: Arc<AtomicUsize>,
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

/// How far a request comes without waiting for anything.
pub(super) enum Begun<W> {
    /// To its end.
    Answered(Response),
    /// Not far: there may be something to wait for.
    Waits(W),
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
            in_work: Arc::default(),
            timeout: limits.timeout,
            tasks,
            meter: meters.of(listener),
            span: info_span!("http.request", listener),
        }))
    }

    /// Serves one request: begins it here and now, and if it waits lets it go on in a task of its own.
    pub(super) async fn serve<W: Future<Output = Response> + Send + 'static>(
        &self,
        about: About<'_>,
        begin: impl FnOnce() -> Begun<W>,
    ) -> Response {
        let ends_by_itself = about.ends_by_itself;
        let mut line =
            RequestLine { edge: &self.0, about, started: Instant::now(), answer: None, ignored: None };
        let response = self.0.run(ends_by_itself, begin).await;
        let code = response.extensions().get::<ErrorCode>().map(|code| code.0);
        line.answer = Some((response.status(), code));
        line.ignored = response.extensions().get::<IgnoredParts>().map(|ignored| ignored.0);
        response
    }
}

/// One of the requests that may be in work at once.
struct Place<C: Deref<Target = AtomicUsize>>(C);

impl<C: Deref<Target = AtomicUsize>> Drop for Place<C> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Parts {
    async fn run<W: Future<Output = Response> + Send + 'static>(
        &self,
        ends_by_itself: bool,
        begin: impl FnOnce() -> Begun<W>,
    ) -> Response {
        let before = self.in_work.fetch_add(1, Ordering::Relaxed);
        let place = Place(&*self.in_work);
        if before >= self.max_concurrent {
            return ApiError::unavailable("overloaded", "too many requests", OVERLOAD_RETRY_SECS)
                .into_response();
        }
        let begun = catch_unwind(AssertUnwindSafe(|| self.span.in_scope(begin)));
        let waits = match begun {
            Ok(Begun::Answered(response)) => return response,
            Ok(Begun::Waits(waits)) => waits,
            Err(_) => return self.panicked(),
        };
        // The place goes into the task: work whose client is gone still counts.
        std::mem::forget(place);
        let place = Place(Arc::clone(&self.in_work));
        let work = async move {
            let response = waits.await;
            drop(place);
            response
        };
        self.wait(ends_by_itself, Box::pin(work.instrument(self.span.clone()))).await
    }

    /// Work that is begun here, too, and moves into a task only when it really waits.
    async fn wait(
        &self,
        ends_by_itself: bool,
        mut work: Pin<Box<impl Future<Output = Response> + Send + 'static>>,
    ) -> Response {
        let at_once = poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
            Poll::Ready(polled.map_err(drop))
        });
        let waiting = match at_once.await {
            Ok(Poll::Ready(response)) => return response,
            Ok(Poll::Pending) => self.tasks.spawn(work),
            Err(()) => return self.panicked(),
        };
        let ended = match ends_by_itself {
            false => tokio::time::timeout(self.timeout, waiting).await,
            true => Ok(waiting.await),
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
    edge.serve(about, || Begun::Waits(next.run(request))).await
}

/// Code of a request whose client did not wait for the answer.
const CLIENT_GONE: &str = "client_gone";

/// The log line of one request, written and counted when it is dropped: also when the client did not wait.
struct RequestLine<'a> {
    edge: &'a Parts,
    about: About<'a>,
    started: Instant,
    answer: Option<(StatusCode, Option<&'static str>)>,
    ignored: Option<usize>,
}

impl Drop for RequestLine<'_> {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let gone = (None, Some(CLIENT_GONE));
        let (status, code) = self.answer.map_or(gone, |(status, code)| (Some(status), code));
        let About { method, route, caller, .. } = &self.about;
        self.edge.meter.note(method, route, status, code, duration);
        macro_rules! line {
            ($level:ident, $status:expr, $code:expr, $text:literal) => {
                $level!(
                    listener = self.edge.listener,
                    http.method = %method,
                    http.route = route,
                    http.status = $status,
                    error.code = $code,
                    http.ignored = self.ignored,
                    caller = caller.and_then(ClientIdentity::name),
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
