//! Real listeners and clients over mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use mtls::identity::Kind;
use mtls::{ExpectedServer, HttpVersion, HttpsClient, ListenerLimits, ListenerTls, Versions, listener};
use pki::Role;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Caller;
use crate::http::RequestMeters;
use crate::http::limits::Clients;
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

pub(super) async fn listen(name: &str, vault: &Arc<PoolVault>, stop: &CancellationToken) -> SocketAddr {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let tls = ListenerTls::Mutual {
        store: testkit::shared().tls(Role::Pool, name),
        rules: testkit::spiffe_rules(),
        accepts: &[Kind::Kme],
        versions: Versions::Latest,
    };
    let edge = EdgeLimits { max_concurrent: 64, timeout: Duration::from_secs(20) };
    let (clients, tasks) = (Clients::unlimited("pool"), TaskTracker::new());
    let router =
        crate::http::pool::router(Arc::clone(vault), clients, edge, tasks, &RequestMeters::default());
    tokio::spawn(listener::serve("pool", tcp, tls, router, ListenerLimits::default(), stop.clone()));
    address
}
