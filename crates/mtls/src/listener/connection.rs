//! One connection: its requests, and when it ends.

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
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::answer::counted;
use super::body::WholeBody;
use super::counts::{Cut, Refusal};
use super::gate::{Admitted, Gate, Refused, next_end};
use super::handshakes::{Handshake, block_of};
use super::timer::ConnectionTimer;
use super::unsent::{Account, OpenAccount, WasCut};
use super::wire::{Stream, Wire};
use super::{Listener, ListenerLimits};
use crate::identity::ClientIdentity;
use crate::service::{ConnectionService as _, ListenerService};

const HEADER_BYTES_MAX: u32 = 32 * 1024;
const STREAMS_MAX: u32 = 128;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// An event of a connection other than a request.
enum Event {
    /// The first request is due: a connection that has sent none ends.
    FirstRequestDue,
    /// Its life is over: the next answer is the last.
    Old,
    /// It takes no more requests.
    Ended,
    /// The client's certificate has to be verified again.
    Check(watch::Receiver<u64>),
    /// It ends at once.
    Cut(Cut),
}

/// What a connection and its requests share.
#[derive(Default)]
struct ConnectionState {
    has_asked: AtomicBool,
    speaks_http1: AtomicBool,
    is_old: AtomicBool,
}

/// Who is at the other end, and how that is verified again.
struct Client<'a> {
    address: SocketAddr,
    identity: ClientIdentity,
    /// `None` without TLS.
    verified: Option<Verified<'a>>,
}

struct Verified<'a> {
    gate: &'a Gate,
    chain: Vec<CertificateDer<'static>>,
    changes: watch::Receiver<u64>,
}

impl<S: ListenerService> Listener<S> {
    /// Serves one connection until it ends. `stop` cuts it.
    pub(super) async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handshake: Option<Handshake>,
        stop: &CancellationToken,
    ) {
        super::wire::prepare(&stream);
        let (Some(gate), Some(handshake)) = (&self.gate, handshake) else {
            let client = Client { address, identity: ClientIdentity::none(), verified: None };
            return self.serve(stream, client, stop).await;
        };
        // Subscribed first: a change during the handshake counts too.
        let changes = gate.changes();
        let shaken = tokio::select! {
            () = stop.cancelled() => return,
            () = handshake.displaced() => Err(Refused {
                kind: Refusal::Displaced,
                reason: "there were too many unfinished handshakes, and this was the oldest".to_owned(),
            }),
            shaken = timeout(self.limits.handshake_timeout, gate.admit(stream)) => shaken.unwrap_or_else(|_| {
                let reason = "the handshake took too long".to_owned();
                Err(Refused { kind: Refusal::Slow, reason })
            }),
        };
        drop(handshake);
        match shaken {
            Ok(Admitted { stream, identity, chain }) => {
                let identity = ClientIdentity::new(Ok(identity));
                let client = Client { address, identity, verified: Some(Verified { gate, chain, changes }) };
                self.serve(stream, client, stop).await;
            }
            Err(refused) => self.refuse(&refused, address, None),
        }
    }

    fn refuse(&self, refused: &Refused, address: SocketAddr, caller: Option<&str>) {
        self.counts.count_refused(refused.kind);
        let block = block_of(address.ip()).to_string();
        if self.log.allows(caller.unwrap_or(&block), refused.kind.name()) {
            let reason = &refused.reason;
            tracing::warn!(listener = self.name, client = %address, caller, reason, "a connection was refused");
        }
    }

    async fn serve(&self, stream: impl Stream, client: Client<'_>, stop: &CancellationToken) {
        let Client { address, identity, verified } = client;
        let name = identity.name().unwrap_or_default().to_owned();
        let own_max = self.service.connections_max(&identity);
        let Some(_place) = self.places.holder(&name).take_up_to(1, own_max) else {
            self.service.refused(&identity);
            let reason = "this client already has its share of the connections".to_owned();
            return self.refuse(&Refused { kind: Refusal::Share, reason }, address, identity.name());
        };
        let account = self.unsent.open(&name);
        if let Some(verified) = &verified {
            account.check_at(next_end(&verified.chain, UnixTime::now()));
        }
        let client = Client { address, identity, verified };
        let Some((cut, error)) = self.requests(stream, client, &account, stop).await else { return };
        self.counts.count_cut(cut);
        if self.log.allows(&name, cut.name()) {
            let error = error.map(|error| error.to_string());
            tracing::warn!(
                listener = self.name, client = %address, caller = name, reason = cut.text(), error,
                "a connection was cut"
            );
        }
    }

    /// Returns why the connection was cut, if it was.
    async fn requests(
        &self,
        stream: impl Stream,
        client: Client<'_>,
        account: &OpenAccount,
        stop: &CancellationToken,
    ) -> Option<(Cut, Option<rustls::Error>)> {
        let Client { address, identity, verified } = client;
        let state = Arc::new(ConnectionState::default());
        let (seen, connection) = (Arc::clone(&state), self.service.open(identity));
        let counting = Arc::clone(account);
        let service = service_fn(move |request: Request<Incoming>| {
            seen.has_asked.store(true, Ordering::Relaxed);
            let is_http1 = request.version() < Version::HTTP_2;
            seen.speaks_http1.store(is_http1, Ordering::Relaxed);
            let is_last = is_http1 && seen.is_old.load(Ordering::Relaxed);
            let request = request.map(whole);
            // Begun in the task of the connection if it can be: a quick answer needs no other.
            let begun = match counting.try_begin() {
                Ok(Some(work)) => Ok((work, connection.answer(request))),
                Ok(None) | Err(WasCut) => Err((request, connection.clone(), Arc::clone(&counting))),
            };
            async move {
                let (work, answer) = match begun {
                    Ok(begun) => begun,
                    Err((request, connection, account)) => {
                        (account.begin().await?, connection.answer(request))
                    }
                };
                let mut answer = counted(answer.await, work);
                if is_last {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, WasCut>(answer)
            }
        });
        let builder = self.builder();
        let stream = TokioIo::new(Wire::new(stream, Arc::clone(account)));
        let mut connection = pin!(builder.serve_connection(stream, service));
        let mut events = self.events(account, stop);
        let chain = verified.map(|verified| {
            events.push(Box::pin(due_again(verified.changes, account)));
            (verified.gate, verified.chain)
        });
        loop {
            tokio::select! {
                biased;
                result = &mut connection => {
                    if let Err(error) = result {
                        tracing::debug!(listener = self.name, client = %address, %error, "a connection broke");
                    }
                    return None;
                }
                // Outside the task's budget, which a busy client could use up each time: its connection must end.
                Some(event) = unconstrained(events.next()) => match event {
                    // The header timeout of hyper starts with the first byte only.
                    Event::FirstRequestDue if !state.has_asked.load(Ordering::Relaxed) => return None,
                    Event::FirstRequestDue => {}
                    // If an idle connection ended now, it could lose a request that is on its way.
                    Event::Old if state.speaks_http1.load(Ordering::Relaxed) => {
                        state.is_old.store(true, Ordering::Relaxed);
                    }
                    Event::Old | Event::Ended => connection.as_mut().graceful_shutdown(),
                    Event::Check(changes) => {
                        let Some((gate, chain)) = &chain else { continue };
                        if let Err(error) = check(gate, chain, account) {
                            account.cut(Cut::Certificate);
                            return Some((Cut::Certificate, Some(error)));
                        }
                        events.push(Box::pin(due_again(changes, account)));
                    }
                    Event::Cut(cut) => {
                        account.cut(cut);
                        return Some((cut, None));
                    }
                },
            }
        }
    }

    /// The events of a connection other than requests. Polls each only when it wakes: most take locks that
    /// all connections share, and a connection is polled with every request.
    fn events<'a>(
        &'a self,
        account: &'a Account,
        stop: &'a CancellationToken,
    ) -> FuturesUnordered<BoxFuture<'a, Event>> {
        let ListenerLimits { header_timeout, connection_life, close_grace, .. } = self.limits;
        let events = FuturesUnordered::<BoxFuture<'a, Event>>::new();
        events.push(Box::pin(async move {
            sleep(header_timeout).await;
            Event::FirstRequestDue
        }));
        events.push(Box::pin(async move {
            sleep(connection_life).await;
            Event::Old
        }));
        events.push(Box::pin(async move {
            tokio::select! {
                () = sleep(connection_life + close_grace / 2) => {}
                () = self.shutdown.cancelled() => {}
            }
            Event::Ended
        }));
        events.push(Box::pin(async move {
            Event::Cut(tokio::select! {
                () = sleep(connection_life + close_grace) => Cut::Old,
                cut = account.to_cut() => cut,
                () = stop.cancelled() => Cut::Stop,
            })
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

fn whole(body: Incoming) -> Body {
    if body.is_end_stream() { Body::empty() } else { Body::new(WholeBody::new(body)) }
}

/// Waits until the client's certificate has to be verified again: others are in force here, or one of the
/// chain has expired.
async fn due_again(mut changes: watch::Receiver<u64>, account: &Account) -> Event {
    tokio::select! {
        Ok(()) = changes.changed() => {}
        () = account.to_check() => {}
    }
    Event::Check(changes)
}

/// Verifies the chain of an open connection again, and sets when that is due next.
fn check(gate: &Gate, chain: &[CertificateDer<'static>], account: &Account) -> Result<(), rustls::Error> {
    let now = UnixTime::now();
    account.check_at(next_end(chain, now));
    gate.check_again(chain, now)
}
