//! The HTTP client of every call to a KME or a pool server.
//!
//! Presents its own certificate, accepts only the expected server, and reuses connections. When the
//! certificates change, it opens new connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::connector::MarkingConnector;
use super::error::TlsError;
use super::material::{Material, provider, unfit};
use super::store::TlsStore;
use super::verifier::{ExpectedServer, IdentityVerifier};
use super::versions::Versions;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Which versions of HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// Only HTTP/2 over TLS 1.3: calls share one connection.
    Http2,
    /// HTTP/2 or 1.1, over TLS 1.3 or 1.2: for other makers' servers.
    Http1Or2,
}

/// Why a request got no answer. The message includes the causes.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// There is no connection: the name, the network or the handshake failed. Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke. The server may have acted on the request.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The certificates cannot be used for a client.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

type Connections = Client<MarkingConnector, Full<Bytes>>;

struct Generation {
    number: u64,
    connections: Connections,
}

/// Calls one kind of server. Clones are cheap and share connections.
#[derive(Clone)]
pub struct HttpsClient(Arc<Inner>);

struct Inner {
    tls: Arc<TlsStore>,
    expected: ExpectedServer,
    trust_domain: String,
    protocol: HttpVersion,
    current: ArcSwap<Generation>,
}

impl fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsClient").field("expected", &self.0.expected).finish_non_exhaustive()
    }
}

impl HttpsClient {
    /// A client with the identity in `tls`, which talks only to `expected` servers of `trust_domain`.
    ///
    /// # Errors
    /// [`TlsError`] when the certificates cannot be used for a client.
    pub fn new(
        tls: Arc<TlsStore>,
        expected: ExpectedServer,
        trust_domain: &str,
        protocol: HttpVersion,
    ) -> Result<Self, TlsError> {
        let number = tls.generation();
        let connections = connections(&tls.material(), &expected, trust_domain, protocol)?;
        let current = ArcSwap::from_pointee(Generation { number, connections });
        let trust_domain = trust_domain.to_owned();
        Ok(Self(Arc::new(Inner { tls, expected, trust_domain, protocol, current })))
    }

    /// Sends a request with an absolute URI and returns the head of the answer, with
    /// [`super::HybridKeyExchange`] in its extensions. Once connected, it has no timeout: the caller sets
    /// one.
    ///
    /// # Errors
    /// [`HttpsError`].
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, HttpsError> {
        let connections = self.connections()?;
        connections.request(request).await.map_err(|error| {
            let text = root_cause(&error);
            if error.is_connect() { HttpsError::Connect(text) } else { HttpsError::Broken(text) }
        })
    }

    fn connections(&self) -> Result<Connections, HttpsError> {
        let current = self.0.current.load();
        // Read before the material: at worst, connections are renewed once too often.
        let number = self.0.tls.generation();
        if current.number == number {
            return Ok(current.connections.clone());
        }
        let material = self.0.tls.material();
        let new = connections(&material, &self.0.expected, &self.0.trust_domain, self.0.protocol)?;
        self.0.current.store(Arc::new(Generation { number, connections: new.clone() }));
        Ok(new)
    }
}

fn connections(
    material: &Material,
    expected: &ExpectedServer,
    trust_domain: &str,
    protocol: HttpVersion,
) -> Result<Connections, TlsError> {
    let versions = match protocol {
        HttpVersion::Http2 => Versions::Latest,
        HttpVersion::Http1Or2 => Versions::Compatible,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.list())
        .map_err(unfit)?;
    let chain = material.server_verifier();
    let builder = match expected {
        ExpectedServer::HostName => builder.dangerous().with_custom_certificate_verifier(chain),
        _ => builder.dangerous().with_custom_certificate_verifier(IdentityVerifier::new(
            chain,
            expected.clone(),
            trust_domain,
        )),
    };
    let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&material.identity));
    let mut tls = builder.with_client_cert_resolver(Arc::new(resolver));
    // Every connection is a full handshake with both certificates checked.
    tls.resumption = rustls::client::Resumption::disabled();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
    let connector = match protocol {
        HttpVersion::Http2 => builder.enable_http2().wrap_connector(tcp),
        HttpVersion::Http1Or2 => builder.enable_all_versions().wrap_connector(tcp),
    };
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_only(protocol == HttpVersion::Http2)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(MarkingConnector(connector)))
}

/// The innermost cause, which says what happened. The outer ones say only where.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
