//! One connection, of HTTP/1.1 or HTTP/2.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kme::{append_wiped, causes};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroize as _;

use super::http1::Http1;
use super::message::{BODY_MAX_BYTES, HttpRequest, HttpResponse, Trouble};

/// One connection, or a share of an HTTP/2 connection.
pub(crate) struct Connection {
    protocol: Protocol,
    used_at: Instant,
}

enum Protocol {
    V1(Box<Http1<TlsStream<TcpStream>>>),
    V2 { requests: SendRequest<Full<Bytes>>, authority: String },
}

impl Connection {
    /// Speaks the protocol that the handshake agreed on, or HTTP/1.1 if it agreed on none.
    pub(super) async fn start(stream: TlsStream<TcpStream>, authority: String) -> io::Result<Self> {
        let protocol = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (requests, driver) = handshake.await.map_err(io::Error::other)?;
            tokio::spawn(driver);
            Protocol::V2 { requests, authority }
        } else {
            Protocol::V1(Box::new(Http1::new(stream, authority)))
        };
        Ok(Self { protocol, used_at: Instant::now() })
    }

    pub(crate) fn is_http_2(&self) -> bool {
        matches!(self.protocol, Protocol::V2 { .. })
    }

    /// Another share of an HTTP/2 connection; `None` for HTTP/1.1.
    pub(crate) fn share(&self) -> Option<Self> {
        let Protocol::V2 { requests, authority } = &self.protocol else { return None };
        let protocol = Protocol::V2 { requests: requests.clone(), authority: authority.clone() };
        Some(Self { protocol, used_at: self.used_at })
    }

    /// Time since its last use.
    pub(super) fn idle_for(&self) -> Duration {
        self.used_at.elapsed()
    }

    /// Sends `request` and reads the whole answer into `response`. After an error the connection cannot be
    /// used again.
    pub(crate) async fn exchange(
        &mut self,
        request: &HttpRequest,
        response: &mut HttpResponse,
    ) -> Result<(), Trouble> {
        response.clear();
        let result = match &mut self.protocol {
            Protocol::V1(connection) => connection.exchange(request, response).await,
            Protocol::V2 { requests, authority } => over_http_2(requests, authority, request, response).await,
        };
        self.used_at = Instant::now();
        result
    }
}

async fn over_http_2(
    requests: &mut SendRequest<Full<Bytes>>,
    authority: &str,
    request: &HttpRequest,
    response: &mut HttpResponse,
) -> Result<(), Trouble> {
    let broken = |error: hyper::Error| {
        let text = format!("the connection broke: {}", causes(&error));
        if error.is_canceled() { Trouble::Unsent(text) } else { Trouble::Broken(text) }
    };
    let mut outgoing =
        Request::builder().method(&request.method).uri(format!("https://{authority}{}", request.target));
    for (name, value) in &request.headers {
        outgoing = outgoing.header(*name, value);
    }
    let outgoing = outgoing
        .body(Full::new(request.body.clone()))
        .map_err(|error| Trouble::Unsent(format!("not a request: {error}")))?;
    requests
        .ready()
        .await
        .map_err(|error| Trouble::Unsent(format!("the connection is closed: {}", causes(&error))))?;
    let (head, mut body) = requests.send_request(outgoing).await.map_err(broken)?.into_parts();
    (response.version, response.headers) = (head.version, head.headers);
    response.is_last = request.is_last;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if response.body.len() + data.len() > BODY_MAX_BYTES {
            return Err(Trouble::Broken(format!("an answer of more than {BODY_MAX_BYTES} bytes")));
        }
        append_wiped(&mut response.body, &data);
        // Wiped unless hyper still holds a part of the same buffer.
        if let Ok(mut data) = data.try_into_mut() {
            data.as_mut().zeroize();
        }
    }
    response.status = head.status.as_u16();
    Ok(())
}
