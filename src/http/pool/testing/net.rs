//! Real listeners and clients over mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use mtls::identity::ClientIdentity;
use mtls::{ExpectedServer, HttpVersion, HttpsClient, ListenerLimits, ListenerTls, Versions, listener};
use pki::Role;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Caller, Conduct};
use crate::http::RequestMeters;
use crate::http::middleware::EdgeLimits;
use crate::pool::PoolVault;

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
        versions: Versions::Latest,
    };
    let edge = EdgeLimits { max_concurrent: 64, timeout: Duration::from_secs(20) };
    let router =
        crate::http::pool::router(Arc::clone(vault), edge, TaskTracker::new(), &RequestMeters::default());
    let router = router.layer(from_fn(move |request: Request, next: Next| conduct.answer(request, next)));
    tokio::spawn(listener::serve("pool", tcp, tls, router, ListenerLimits::default(), stop.clone()));
}

impl Conduct {
    async fn answer(self, request: Request, next: Next) -> Response {
        let caller = request.extensions().get::<ClientIdentity>().and_then(ClientIdentity::name);
        let is_download = request.method() == Method::GET && !request.uri().path().ends_with("/reads");
        let is_victim = match self {
            Self::LiesTo(victim) | Self::NeverEndsFor(victim) => caller == Some(victim),
            Self::Honest => false,
        };
        let answer = next.run(request).await;
        if !is_download || !is_victim {
            return answer;
        }
        match self {
            Self::Honest => answer,
            Self::LiesTo(_) => {
                let (parts, body) = answer.into_parts();
                let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
                for byte in &mut bytes {
                    *byte = !*byte;
                }
                Response::from_parts(parts, Body::from(bytes))
            }
            Self::NeverEndsFor(_) => {
                let (parts, _) = answer.into_parts();
                let never = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
                Response::from_parts(parts, Body::from_stream(never))
            }
        }
    }
}
