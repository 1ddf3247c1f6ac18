//! The accept loop of every listener.
//!
//! Bounds what a client can hold, whoever it is: unfinished handshakes, connections, the wait for a first
//! request, heads, streams, unread answers, and the life of a connection. Reads the identity of the client
//! once for each connection, and looks again when certificates or lists change.

mod answer;
mod body;
mod connection;
mod counts;
mod gate;
mod handshakes;
mod timer;
mod unsent;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kme::FairShares;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::counts::{Cut, ListenerCounts, Refusal};
use self::gate::Gate;
use self::handshakes::Handshakes;
use self::unsent::Unsent;
use super::service::ListenerService;
use super::sparing::SparingLog;
use super::store::TlsStore;
use super::versions::Versions;
use crate::identity::{IdentityRules, Kind};

/// Pause after the system could not accept a connection, for example because no file descriptor was free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MIB: usize = 1024 * 1024;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenerLimits {
    /// Most connections at once. Each client has a fair share of them, by the name in its certificate: one
    /// alone gets half. A connection beyond that is closed after the handshake.
    pub max_connections: usize,
    /// Most unfinished handshakes at once. A new one beyond that displaces the oldest of the address that has
    /// the most.
    pub max_handshakes: usize,
    /// Most of them from one address; of IPv6 from one /64. A new one beyond that displaces the oldest, if that
    /// has lasted for `handshake_grace`.
    pub max_handshakes_per_address: usize,
    /// How long an honest handshake may take, also where many clients of one address connect at once.
    pub handshake_grace: Duration,
    /// Longest time for a handshake.
    pub handshake_timeout: Duration,
    /// Longest time for a client to send the head of a request, including the first.
    pub header_timeout: Duration,
    /// How long a connection serves requests. After that the client must connect again, and is checked again.
    /// It is asked to: by HTTP/2, or in the next answer of HTTP/1.1.
    pub connection_life: Duration,
    /// How long a connection has to end after that. Then it is cut, whatever the client does.
    pub close_grace: Duration,
    /// Most bytes of unread answers on one connection. Beyond that its further requests wait.
    pub unsent_max_bytes: usize,
    /// Most bytes of unread answers in all. Beyond that, the client with the most loses connections.
    pub unsent_all_max_bytes: usize,
    /// A connection on which answers wait, and whose client reads nothing for so long, is cut.
    pub unread_timeout: Duration,
    /// Longest time from an answer to its last byte; then its connection is cut. Not for streamed bodies.
    pub answer_timeout: Duration,
    /// How long running requests may take when the listener stops.
    pub shutdown_grace: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_handshakes: 512,
            max_handshakes_per_address: 64,
            handshake_grace: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            connection_life: Duration::from_mins(10),
            close_grace: Duration::from_secs(10),
            unsent_max_bytes: MIB,
            unsent_all_max_bytes: 64 * MIB,
            unread_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_mins(1),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// How connections are protected.
#[derive(Clone)]
pub enum ListenerTls {
    /// Not protected. For loopback addresses only; clients have no identity.
    Plain,
    /// By mutual TLS. A client without a certificate of the chain gets no connection, nor does one of a kind
    /// that has no business here.
    Mutual {
        /// The certificates of the server.
        store: Arc<TlsStore>,
        /// How the identities of clients are read.
        rules: IdentityRules,
        /// Who has business here.
        accepts: &'static [Kind],
        /// Accepted versions.
        versions: Versions,
    },
}

struct Listener<S> {
    name: &'static str,
    /// `None` without TLS.
    gate: Option<Gate>,
    service: S,
    limits: ListenerLimits,
    shutdown: CancellationToken,
    handshakes: Handshakes,
    /// Connections, by the name of the client.
    places: FairShares<String>,
    unsent: Arc<Unsent>,
    counts: Arc<ListenerCounts>,
    log: SparingLog,
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
    serve_counted(name, tcp, tls, service, limits, shutdown, Arc::default()).await;
}

/// As [`serve`], and counts what happens in `counts`.
pub async fn serve_counted(
    name: &'static str,
    tcp: TcpListener,
    tls: ListenerTls,
    service: impl ListenerService,
    limits: ListenerLimits,
    shutdown: CancellationToken,
    counts: Arc<ListenerCounts>,
) {
    let gate = match tls {
        ListenerTls::Plain => None,
        ListenerTls::Mutual { store, rules, accepts, versions } => {
            Some(Gate::new(store, rules, versions, accepts))
        }
    };
    let listener = Arc::new(Listener {
        name,
        gate,
        service,
        limits,
        shutdown,
        handshakes: Handshakes::new(&limits, Arc::clone(&counts)),
        places: FairShares::new(limits.max_connections),
        unsent: Unsent::new(limits, Arc::clone(&counts)),
        counts,
        log: SparingLog::new(name),
    });
    let connections = TaskTracker::new();
    let stop = CancellationToken::new();
    tokio::select! {
        () = listener.shutdown.cancelled() => {}
        () = accept(&listener, &tcp, &connections, &stop) => {}
        () = listener.unsent.watch() => {}
    }
    drop(tcp);
    connections.close();
    if timeout(limits.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!(
            listener = name,
            left = connections.len(),
            "requests took longer than the grace period; closing their connections"
        );
        stop.cancel();
        connections.wait().await;
    }
}

async fn accept(
    listener: &Arc<Listener<impl ListenerService>>,
    tcp: &TcpListener,
    connections: &TaskTracker,
    stop: &CancellationToken,
) {
    loop {
        match tcp.accept().await {
            Ok((stream, address)) => {
                let (listener, stop) = (Arc::clone(listener), stop.clone());
                // Before the task starts, so that their number is bounded.
                let handshake = listener.gate.as_ref().map(|_| listener.handshakes.begin(address.ip()));
                connections.spawn(async move {
                    listener.connection(stream, address, handshake, &stop).await;
                });
            }
            // The client is gone already.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if listener.log.allows("", "accept") {
                    tracing::error!(listener = listener.name, %error, "connections cannot be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
