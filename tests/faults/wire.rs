//! An application's HTTPS client. Keeps its connection, reconnects, and can hang up in the middle of a
//! request.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mtls::{ExpectedServer, HttpVersion, HttpsClient, HttpsError, TlsFiles, TlsStore};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use testkit::Network;

/// Longer than the daemons take to refuse. After that a request counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(8);
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// The raw result of a call.
pub(crate) enum Reply {
    NotSent,
    Lost,
    Whole { status: u16, retry_after: bool, is_json: bool, body: Bytes },
}

/// One application's connection to its site.
pub(crate) struct Wire {
    url: String,
    at: SocketAddr,
    protocol: Protocol,
}

enum Protocol {
    /// The product's own client: HTTP/2, calls share connections.
    Two(HttpsClient),
    /// One HTTP/1.1 connection of its own, which is closed to hang up.
    One { tls: TlsConnector, open: Option<Open> },
}

struct Open {
    local_port: u16,
    requests: SendRequest<Full<Bytes>>,
    connection: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Wire {
    pub(crate) fn new(network: &Network, sae: &str, is_http_1: bool) -> Self {
        let (site, sae) = network.sae(sae);
        let url = site.sae_url.clone();
        let at = url.trim_start_matches("https://").parse().unwrap();
        let protocol = if is_http_1 {
            Protocol::One { tls: connector(&network.ca(), &sae.cert, &sae.key), open: None }
        } else {
            let (ca, cert, key) = (network.ca(), sae.cert.clone(), sae.key.clone());
            let tls = TlsStore::open(TlsFiles { ca, cert, key, crl: None }).unwrap();
            let https = HttpsClient::new(tls, ExpectedServer::HostName, "", HttpVersion::Http1Or2).unwrap();
            Protocol::Two(https)
        };
        Self { url, at, protocol }
    }

    /// The local port of the HTTP/1.1 connection for the next request, if one is open.
    pub(crate) fn local_port(&self) -> Option<u16> {
        let Protocol::One { open: Some(open), .. } = &self.protocol else { return None };
        (!open.requests.is_closed()).then_some(open.local_port)
    }

    /// Sends a request and waits for the whole answer, at most for `hang_up_after` if that is given.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<String>,
        hang_up_after: Option<Duration>,
    ) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::HOST, self.at.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .unwrap();
        let patience = hang_up_after.unwrap_or(PATIENCE);
        let at = self.at;
        match &mut self.protocol {
            Protocol::Two(https) => {
                let exchange = async {
                    match https.send(request).await {
                        Ok(response) => whole(response).await,
                        Err(HttpsError::Connect(_)) => Reply::NotSent,
                        Err(_) => Reply::Lost,
                    }
                };
                timeout(patience, exchange).await.unwrap_or(Reply::Lost)
            }
            Protocol::One { tls, open } => {
                if open.as_ref().is_none_or(|open| open.requests.is_closed()) {
                    *open = timeout(CONNECT_PATIENCE, connect(tls, at)).await.ok().flatten();
                }
                let Some(connection) = open else { return Reply::NotSent };
                let exchange = async {
                    match connection.requests.send_request(request).await {
                        Ok(response) => whole(response).await,
                        Err(_) => Reply::Lost,
                    }
                };
                let reply = timeout(patience, exchange).await.unwrap_or(Reply::Lost);
                if matches!(reply, Reply::Lost) {
                    *open = None;
                }
                reply
            }
        }
    }
}

async fn whole(response: Response<Incoming>) -> Reply {
    let status = response.status().as_u16();
    let retry_after = response.headers().contains_key(header::RETRY_AFTER);
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    match response.into_body().collect().await {
        Ok(body) => Reply::Whole { status, retry_after, is_json, body: body.to_bytes() },
        Err(_) => Reply::Lost,
    }
}

async fn connect(tls: &TlsConnector, at: SocketAddr) -> Option<Open> {
    let tcp = TcpStream::connect(at).await.ok()?;
    tcp.set_nodelay(true).ok()?;
    let local_port = tcp.local_addr().ok()?.port();
    let stream = tls.connect(ServerName::IpAddress(at.ip().into()), tcp).await.ok()?;
    let (requests, connection) = handshake(TokioIo::new(stream)).await.ok()?;
    let task = tokio::spawn(async move { drop(connection.await) });
    Some(Open { local_port, requests, connection: task.abort_handle() })
}

fn connector(ca: &Path, cert: &Path, key: &Path) -> TlsConnector {
    let certs =
        |path: &Path| CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let mut roots = RootCertStore::empty();
    for root in certs(ca) {
        roots.add(root).unwrap();
    }
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certs(cert), key)
        .unwrap();
    TlsConnector::from(Arc::new(config))
}
