//! Real listeners and clients over mutual TLS.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use mtls::identity::{ClientIdentity, Kind};
use mtls::{
    ConnectionService, ExpectedServer, HttpVersion, HttpsClient, ListenerLimits, ListenerService,
    ListenerTls, Versions, listener,
};
use pki::Role;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Caller, Conduct};
use crate::http::RequestMeters;
use crate::http::limits::Clients;
use crate::http::middleware::EdgeLimits;
use crate::pool::PoolVault;

/// More than any test makes.
const CREATIONS: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

pub(super) fn url_of(address: SocketAddr) -> Uri {
    format!("https://{address}").parse().unwrap()
}

pub(super) fn https(server: &str, caller: Caller) -> HttpsClient {
    let (role, id) = match caller {
        Caller::Kme(id) => (Role::Kme, id),
        Caller::Sae(id) => (Role::Sae, id),
        Caller::Operator(id) => (Role::Operator, id),
    };
    let expected = ExpectedServer::Pool(server.parse().unwrap());
    let tls = testkit::shared().tls(role, id);
    HttpsClient::new(tls, expected, testkit::TRUST_DOMAIN, HttpVersion::Http2).unwrap()
}

pub(super) async fn listen(
    name: &str,
    vault: &Arc<PoolVault>,
    conduct: Conduct,
    stop: &CancellationToken,
) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    serve(tcp, name, vault, conduct, stop);
    address
}

pub(super) fn serve(
    tcp: TcpListener,
    name: &str,
    vault: &Arc<PoolVault>,
    conduct: Conduct,
    stop: &CancellationToken,
) {
    let tls = ListenerTls::Mutual {
        store: testkit::shared().tls(Role::Pool, name),
        rules: testkit::spiffe_rules(),
        // All, so that tests reach the routes, which refuse other kinds too.
        accepts: Kind::ALL,
        versions: Versions::Latest,
    };
    let edge = EdgeLimits { max_concurrent: 64, timeout: Duration::from_secs(20) };
    let (clients, tasks) = (Clients::unlimited("pool"), TaskTracker::new());
    let router = crate::http::pool::router(
        Arc::clone(vault),
        clients,
        edge,
        CREATIONS,
        tasks,
        &RequestMeters::default(),
    );
    let router = Conducted { inner: router, conduct };
    tokio::spawn(listener::serve("pool", tcp, tls, router, ListenerLimits::default(), stop.clone()));
}

/// A router whose downloads are tampered with.
struct Conducted<S> {
    inner: S,
    conduct: Conduct,
}

#[derive(Clone)]
struct ConductedConnection<C> {
    inner: C,
    conduct: Conduct,
    caller: Option<String>,
}

impl<S: ListenerService> ListenerService for Conducted<S> {
    type Connection = ConductedConnection<S::Connection>;

    fn open(&self, client: ClientIdentity) -> Self::Connection {
        let caller = client.name().map(str::to_owned);
        ConductedConnection { inner: self.inner.open(client), conduct: self.conduct, caller }
    }
}

impl<C: ConnectionService> ConnectionService for ConductedConnection<C> {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<C> {
        let is_download = request.method() == Method::GET && !request.uri().path().ends_with("/reads");
        let conduct = match self.conduct {
            Conduct::LiesTo(victim) | Conduct::NeverEndsFor(victim)
                if is_download && self.caller.as_deref() == Some(victim) =>
            {
                self.conduct
            }
            Conduct::InventsReadsOf(_) if request.uri().path().ends_with("/reads") => self.conduct,
            _ => Conduct::Honest,
        };
        let answer = self.inner.answer(request);
        async move {
            let answer = answer.await;
            match conduct {
                Conduct::Honest => answer,
                Conduct::LiesTo(_) => {
                    let (parts, body) = answer.into_parts();
                    let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
                    for byte in &mut bytes {
                        *byte = !*byte;
                    }
                    Response::from_parts(parts, Body::from(bytes))
                }
                Conduct::InventsReadsOf(reader) => {
                    let reads =
                        format!(r#"{{"readers":[{{"reader":"{reader}","started":9,"completed":9}}]}}"#);
                    Response::new(Body::from(reads))
                }
                Conduct::NeverEndsFor(_) => {
                    let (parts, _) = answer.into_parts();
                    let never = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
                    Response::from_parts(parts, Body::from_stream(never))
                }
            }
        }
    }
}
