//! The accept loop of every listener.
//!
//! Bounds connections, handshakes, the wait for a first request, headers and streams. Reads the identity of
//! the client once for each connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hyper::Version;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::WholeBody;
use super::service::{ConnectionService as _, ListenerService};
use super::store::TlsStore;
use super::timer::ConnectionTimer;
use super::versions::Versions;
use crate::identity::{ClientIdentity, IdentityError, IdentityRules, identify};

/// Pause after the system could not accept a connection, for example because no file descriptor was free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEADER_BYTES_MAX: u32 = 32 * 1024;
const STREAMS_MAX: u32 = 256;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenerLimits {
    /// Most connections at once, handshakes included. Others wait in the queue of the system.
    pub max_connections: usize,
    /// Longest time for a handshake.
    pub handshake_timeout: Duration,
    /// Longest time for a client to send the head of a request, including the first.
    pub header_timeout: Duration,
    /// How long a connection serves requests. After that the client must connect again, and is checked again.
    /// An HTTP/1.1 client learns this from its next answer, or is disconnected after another
    /// `header_timeout`. So a certificate works at most `connection_life` plus `header_timeout` longer than
    /// it is valid.
    pub connection_life: Duration,
    /// How long running requests may take when the listener stops.
    pub shutdown_grace: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            connection_life: Duration::from_mins(10),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// How connections are protected.
#[derive(Clone)]
pub enum ListenerTls {
    /// Not protected. For loopback addresses only; clients have no identity.
    Plain,
    /// By mutual TLS. A client without a certificate of the chain gets no connection.
    Mutual {
        /// The certificates of the server.
        store: Arc<TlsStore>,
        /// How the identities of clients are read.
        rules: IdentityRules,
        /// Accepted versions.
        versions: Versions,
    },
}

/// An event of a connection other than a request.
enum Event {
    /// The first request is due: a connection that has sent none ends.
    FirstRequestDue,
    /// Its life is over: the next answer is the last.
    Old,
    /// It takes no more requests.
    Ended,
    /// It ends at once.
    Cut,
}

/// What a connection and its requests share.
#[derive(Default)]
struct ConnectionState {
    has_asked: AtomicBool,
    speaks_http1: AtomicBool,
    is_old: AtomicBool,
}

struct Listener<S> {
    name: &'static str,
    tls: ListenerTls,
    service: S,
    limits: ListenerLimits,
    shutdown: CancellationToken,
}

/// Serves `service` on `tcp` until `shutdown`. After that, running requests have `shutdown_grace` to end.
pub async fn serve(
    name: &'static str,
    tcp: TcpListener,
    tls: ListenerTls,
    service: impl ListenerService,
    limits: ListenerLimits,
    shutdown: CancellationToken,
) {
    let listener = Arc::new(Listener { name, tls, service, limits, shutdown });
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    tokio::select! {
        () = listener.shutdown.cancelled() => {}
        () = accept(&listener, &tcp, &connections, &cut) => {}
    }
    drop(tcp);
    connections.close();
    if timeout(limits.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!(
            listener = name,
            left = connections.len(),
            "requests took longer than the grace period; closing their connections"
        );
        cut.cancel();
        connections.wait().await;
    }
}

async fn accept(
    listener: &Arc<Listener<impl ListenerService>>,
    tcp: &TcpListener,
    connections: &TaskTracker,
    cut: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(listener.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    loop {
        // Taken first, so that no connection is accepted before it can be served.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match tcp.accept().await {
            Ok((stream, address)) => {
                let (listener, cut) = (Arc::clone(listener), cut.clone());
                connections.spawn(async move {
                    listener.connection(stream, address, &cut).await;
                    drop(permit);
                });
            }
            // The client is gone already.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(listener = listener.name, %error, "connections cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl<S: ListenerService> Listener<S> {
    async fn connection(&self, stream: TcpStream, address: SocketAddr, cut: &CancellationToken) {
        let _ = stream.set_nodelay(true);
        let ListenerTls::Mutual { store, rules, versions } = &self.tls else {
            return self.requests(stream, address, ClientIdentity::none(), None, cut).await;
        };
        // Subscribed first: a change during the handshake ends the connection too.
        let changes = store.changes();
        let acceptor = store.acceptor(*versions);
        let refused = |reason: String| {
            tracing::warn!(listener = self.name, client = %address, reason, "a connection was refused");
        };
        let handshake = timeout(self.limits.handshake_timeout, acceptor.accept(stream));
        let Some(shaken) = cut.run_until_cancelled(handshake).await else { return };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refused(error.to_string()),
            Err(_) => return refused("the handshake took too long".to_owned()),
        };
        let identity = identity_of(&stream, rules);
        if let Some(reason) = identity.refusal() {
            refused(format!("every request will be answered with 401: {reason}"));
        }
        self.requests(stream, address, identity, Some(changes), cut).await;
    }

    async fn requests(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
        identity: ClientIdentity,
        changes: Option<watch::Receiver<u64>>,
        cut: &CancellationToken,
    ) {
        let state = Arc::new(ConnectionState::default());
        let (seen, connection) = (Arc::clone(&state), self.service.open(identity));
        let service = service_fn(move |request: Request<Incoming>| {
            seen.has_asked.store(true, Ordering::Relaxed);
            let is_http1 = request.version() < Version::HTTP_2;
            seen.speaks_http1.store(is_http1, Ordering::Relaxed);
            let is_last = is_http1 && seen.is_old.load(Ordering::Relaxed);
            let whole = |body: Incoming| {
                if body.is_end_stream() { Body::empty() } else { Body::new(WholeBody::new(body)) }
            };
            let answer = connection.answer(request.map(whole));
            async move {
                let mut answer = answer.await;
                if is_last {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let builder = self.builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut events = self.events(changes, cut);
        loop {
            tokio::select! {
                biased;
                result = &mut connection => {
                    if let Err(error) = result {
                        tracing::debug!(listener = self.name, client = %address, %error, "a connection broke");
                    }
                    return;
                }
                Some(event) = events.next() => match event {
                    // The header timeout of hyper starts with the first byte only.
                    Event::FirstRequestDue if !state.has_asked.load(Ordering::Relaxed) => return,
                    Event::FirstRequestDue => {}
                    // If an idle connection ended now, it could lose a request that is on its way.
                    Event::Old if state.speaks_http1.load(Ordering::Relaxed) => {
                        state.is_old.store(true, Ordering::Relaxed);
                    }
                    Event::Old | Event::Ended => connection.as_mut().graceful_shutdown(),
                    Event::Cut => return,
                },
            }
        }
    }

    /// The events of a connection other than requests. Polls each only when it wakes: most take locks that
    /// all connections share, and a connection is polled with every request.
    fn events<'a>(
        &'a self,
        changes: Option<watch::Receiver<u64>>,
        cut: &'a CancellationToken,
    ) -> FuturesUnordered<BoxFuture<'a, Event>> {
        let events = FuturesUnordered::<BoxFuture<'a, Event>>::new();
        events.push(Box::pin(async {
            sleep(self.limits.header_timeout).await;
            Event::FirstRequestDue
        }));
        events.push(Box::pin(async {
            sleep(self.limits.connection_life).await;
            Event::Old
        }));
        events.push(Box::pin(async {
            let life = self.limits.connection_life + self.limits.header_timeout;
            tokio::select! {
                () = changed(changes) => {}
                () = sleep(life) => {}
                () = self.shutdown.cancelled() => {}
            }
            Event::Ended
        }));
        events.push(Box::pin(async {
            cut.cancelled().await;
            Event::Cut
        }));
        events
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        // Keep hyper's own limit of 100 fields: with any other, it clears an array for each request.
        builder
            .http1()
            .timer(ConnectionTimer::default())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(HEADER_BYTES_MAX as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        builder
    }
}

async fn changed(changes: Option<watch::Receiver<u64>>) {
    if let Some(mut changes) = changes
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn identity_of(stream: &TlsStream<TcpStream>, rules: &IdentityRules) -> ClientIdentity {
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    ClientIdentity::new(match leaf {
        Some(leaf) => identify(leaf, rules),
        None => Err(IdentityError::NoCertificate),
    })
}
