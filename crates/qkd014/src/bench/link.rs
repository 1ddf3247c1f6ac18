//! Connections: how they are made, and one request after the other on them.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mtls::{Dialer, Offer, OfferedTls};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::BenchError;
use super::calls::Call;
use super::http1::Http1;
use super::setup::{End, Http};

/// Longest answer over HTTP/2.
const BODY_MAX_BYTES: usize = 64 * 1024 * 1024;

/// A server, and as whom it is asked. The handshake's configuration is made once.
pub(super) struct Target {
    connector: TlsConnector,
    name: ServerName<'static>,
    host: String,
    port: u16,
    authority: String,
    http: Http,
    patience: Duration,
}

impl Target {
    pub(super) fn new(end: &End, http: Http, patience: Duration) -> Result<Self, BenchError> {
        let wrong = || BenchError(format!("{} is no https URL", end.url));
        let uri: Uri = end.url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong());
        }
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let alpn = [http.alpn()];
        let offer = Offer { tls: OfferedTls::Both, alpn: &alpn, certificate: true };
        let connector = Dialer::new(end.tls.clone()).connector(offer);
        Ok(Self {
            connector: connector.map_err(|error| BenchError(error.to_string()))?,
            name: ServerName::try_from(host.clone()).map_err(|_| wrong())?,
            authority: uri.authority().ok_or_else(wrong)?.to_string(),
            host,
            port,
            http,
            patience,
        })
    }

    /// Connects and completes the handshake.
    pub(super) async fn open(&self) -> io::Result<Link> {
        let open = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            let stream = self.connector.connect(self.name.clone(), tcp).await?;
            if self.http == Http::V1 {
                return Ok(Link::V1(Box::new(Http1::new(stream, self.authority.clone()))));
            }
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "the server does not speak HTTP/2"));
            }
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (requests, driver) = handshake.await.map_err(io::Error::other)?;
            tokio::spawn(driver);
            Ok(Link::V2(requests, self.authority.clone()))
        };
        timeout(self.patience, open).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// One connection, or a share in one of HTTP/2.
pub(super) enum Link {
    V1(Box<Http1>),
    V2(http2::SendRequest<Full<Bytes>>, String),
}

/// The last answer; its memory is used again.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// Whether the connection serves no more requests.
    pub(super) is_last: bool,
}

impl Link {
    /// Another share in a connection of HTTP/2; `None` for HTTP/1.1.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::V1(_) => None,
            Self::V2(requests, authority) => Some(Self::V2(requests.clone(), authority.clone())),
        }
    }

    /// Sends `call` and reads the answer into `reply`; `is_last` asks for the end of the connection.
    pub(super) async fn exchange(&mut self, call: &Call, is_last: bool, reply: &mut Reply) -> io::Result<()> {
        match self {
            Self::V1(connection) => {
                let answer = connection.exchange(call, is_last).await?;
                reply.status = answer.status;
                reply.is_last = answer.is_last;
                reply.take_room(answer.body.len());
                reply.body.extend_from_slice(answer.body);
            }
            Self::V2(requests, authority) => {
                let request = request(call, authority)?;
                requests.ready().await.map_err(io::Error::other)?;
                let response = requests.send_request(request).await.map_err(io::Error::other)?;
                reply.status = response.status().as_u16();
                reply.is_last = is_last;
                reply.take_room(0);
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
                    reply.append(&data)?;
                }
            }
        }
        Ok(())
    }
}

impl Reply {
    /// Empties the body and makes room, so that it need not move while it grows.
    fn take_room(&mut self, len: usize) {
        self.body.clear();
        if self.body.capacity() < len {
            self.body = Zeroizing::new(Vec::with_capacity(len));
        }
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let len = self.body.len() + data.len();
        if len > BODY_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a body that is too long"));
        }
        if self.body.capacity() < len {
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * len));
            larger.extend_from_slice(&self.body);
            self.body = larger;
        }
        self.body.extend_from_slice(data);
        Ok(())
    }
}

fn request(call: &Call, authority: &str) -> io::Result<Request<Full<Bytes>>> {
    let method = if call.body.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::builder().method(method).uri(format!("https://{authority}{}", call.target));
    if call.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(Full::new(call.body.clone().unwrap_or_default())).map_err(io::Error::other)
}
