//! Requests on connections: how they are made, sent and read to their end within bounds.

use bytes::Bytes;
use http::{Method, Request, Uri, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mtls::{Dialer, Offer};
use tokio::time::{Instant, timeout};
use zeroize::{Zeroize as _, Zeroizing};

use super::exchange::Exchange;
use super::setup::Sae;

/// Longest answer that is read.
pub(super) const ANSWER_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Characters of a URL's ID that stand for themselves.
const ESCAPED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request before it is sent.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::bare(Method::GET, path)
    }

    pub(super) fn post(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let call = Self::bare(Method::POST, path).with("content-type", "application/json");
        Self { body: Some(body.into()), ..call }
    }

    /// Without a body.
    pub(super) fn bare(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// A path of the API: `/api/v1/keys/{id}/{rest}`.
pub(super) fn path(id: &str, rest: &str) -> String {
    format!("/api/v1/keys/{}/{rest}", percent_encoding::utf8_percent_encode(id, ESCAPED))
}

enum Protocol {
    V1(http1::SendRequest<Full<Bytes>>),
    V2(http2::SendRequest<Full<Bytes>>),
}

/// An HTTP connection.
pub(super) struct Link {
    protocol: Protocol,
    pub(super) used_at: Instant,
}

/// Why there is no answer.
enum Trouble {
    /// The request was not sent, so it can be sent again.
    Unsent(String),
    /// It may have been.
    Sent(String),
}

impl Link {
    /// Connects as `sae`. No bound on time: the caller has one.
    pub(super) async fn open(sae: &Sae, offer: Offer<'_>) -> Result<Self, String> {
        let (host, port) = host_and_port(&sae.url)?;
        let dialer = Dialer::new(sae.tls.clone());
        let stream = dialer.dial(&host, port, offer).await.map_err(|error| error.to_string())?;
        let is_2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        let text = |error: hyper::Error| error.to_string();
        let protocol = if is_2 {
            let (link, driver) = http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
            tokio::spawn(driver);
            Protocol::V2(link)
        } else {
            let (link, driver) = http1::handshake(io).await.map_err(text)?;
            tokio::spawn(driver);
            Protocol::V1(link)
        };
        Ok(Self { protocol, used_at: Instant::now() })
    }

    pub(super) fn is_http_2(&self) -> bool {
        matches!(self.protocol, Protocol::V2(_))
    }

    /// Sends `call` and reads the answer. The `bool`: whether the request was surely not sent.
    pub(super) async fn transfer(
        &mut self,
        sae: &Sae,
        call: &Call,
        patience: std::time::Duration,
    ) -> (Exchange, bool) {
        self.used_at = Instant::now();
        match timeout(patience, self.exchange(sae, call)).await {
            Ok(Ok(exchange)) => (exchange, false),
            Ok(Err(Trouble::Unsent(trouble))) => (unanswered(sae, call, trouble), true),
            Ok(Err(Trouble::Sent(trouble))) => (unanswered(sae, call, trouble), false),
            Err(_) => (unanswered(sae, call, format!("nothing complete within {patience:?}")), false),
        }
    }

    async fn exchange(&mut self, sae: &Sae, call: &Call) -> Result<Exchange, Trouble> {
        let request = self.request(sae, call).map_err(Trouble::Unsent)?;
        let unsent = |error: hyper::Error| Trouble::Unsent(error.to_string());
        let sent = |error: hyper::Error| {
            let text = format!("the connection broke ({error})");
            if error.is_canceled() { Trouble::Unsent(text) } else { Trouble::Sent(text) }
        };
        let response = match &mut self.protocol {
            Protocol::V1(link) => {
                link.ready().await.map_err(unsent)?;
                link.send_request(request).await.map_err(sent)?
            }
            Protocol::V2(link) => {
                link.ready().await.map_err(unsent)?;
                link.send_request(request).await.map_err(sent)?
            }
        };
        let (parts, mut body) = response.into_parts();
        let mut exchange = unanswered(sae, call, String::new());
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(frame) = body.frame().await {
            if let Ok(chunk) = frame.map_err(sent)?.into_data() {
                append(&mut bytes, chunk);
            }
            if bytes.len() > ANSWER_MAX_BYTES {
                return Err(Trouble::Sent(format!("an answer of more than {ANSWER_MAX_BYTES} bytes")));
            }
        }
        exchange.status = parts.status.as_u16();
        exchange.version = parts.version;
        exchange.headers = parts.headers;
        exchange.body = bytes;
        exchange.trouble = None;
        Ok(exchange)
    }

    fn request(&self, sae: &Sae, call: &Call) -> Result<Request<Full<Bytes>>, String> {
        let (host, port) = host_and_port(&sae.url)?;
        let authority = format!("{host}:{port}");
        let mut request = Request::builder().method(call.method.clone());
        request = match self.protocol {
            Protocol::V1(_) => request.uri(&call.path).header(header::HOST, authority),
            Protocol::V2(_) => request.uri(format!("https://{authority}{}", call.path)),
        };
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::from(call.body.clone().unwrap_or_default()));
        request.body(body).map_err(|error| error.to_string())
    }
}

/// Appends without leaving an unwiped copy behind when the buffer must move, and wipes `chunk` if it is ours alone.
fn append(bytes: &mut Zeroizing<Vec<u8>>, chunk: Bytes) {
    if bytes.capacity() - bytes.len() < chunk.len() {
        let wanted = (bytes.len() + chunk.len()).max(2 * bytes.capacity()).max(4096);
        let mut larger = Zeroizing::new(Vec::with_capacity(wanted));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(&chunk);
    if let Ok(mut own) = chunk.try_into_mut() {
        own.as_mut().zeroize();
    }
}

/// A call without an answer.
pub(super) fn unanswered(sae: &Sae, call: &Call, trouble: String) -> Exchange {
    Exchange {
        who: sae.id.clone(),
        method: call.method.clone(),
        url: call.path.clone(),
        request_body: String::from_utf8_lossy(call.body.as_deref().unwrap_or_default()).into_owned(),
        status: 0,
        version: Version::HTTP_11,
        headers: http::HeaderMap::new(),
        body: Zeroizing::default(),
        trouble: Some(trouble),
    }
}

/// Host and port of an `https` URL.
pub(super) fn host_and_port(url: &str) -> Result<(String, u16), String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url} is no URL"))?;
    let host = uri.host().ok_or_else(|| format!("{url} names no host"))?;
    Ok((host.to_owned(), uri.port_u16().unwrap_or(443)))
}
