//! An HTTP/2 client made by hand, for tests of hostile clients: it sends single frames, may withhold
//! acknowledgements, may leave answers unread, and may bind a source address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;

/// Types of frames (RFC 9113, section 6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// Settings that a client may send.
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// Who connects, and from where.
#[derive(Clone)]
pub struct RawClient {
    tls: Arc<ClientConfig>,
    from: Option<IpAddr>,
    receive_buffer: Option<u32>,
}

impl RawClient {
    /// With the certificate in `cert`, whose key is in `key`. Trusts servers under `ca`.
    pub fn new(ca: &Path, cert: &Path, key: &Path) -> Self {
        let certs = |path: &Path| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
        };
        let mut roots = RootCertStore::empty();
        for root in certs(ca) {
            roots.add(root).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certs(cert), PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        // Every connection is a whole handshake.
        tls.resumption = rustls::client::Resumption::disabled();
        Self { tls: Arc::new(tls), from: None, receive_buffer: None }
    }

    /// Connects from this address: all of 127.0.0.0/8 is there on Linux.
    pub fn from_address(mut self, from: IpAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// Lets the system keep about so many bytes that this client has not read.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// A connection without TLS, as a stranger could open it.
    pub async fn tcp(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection with TLS on which nothing has been sent. In TLS 1.3 the server's refusal of a certificate
    /// arrives after this, with the first read.
    pub async fn tls(&self, to: SocketAddr, protocol: &str) -> io::Result<TlsStream<TcpStream>> {
        self.tls_over(self.tcp(to).await?, protocol).await
    }

    /// The same over a connection that is there already.
    pub async fn tls_over(&self, stream: TcpStream, protocol: &str) -> io::Result<TlsStream<TcpStream>> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await
    }

    /// An HTTP/2 connection with ordinary settings.
    pub async fn h2(&self, to: SocketAddr) -> io::Result<RawH2> {
        self.h2_with(to, &[]).await
    }

    /// An HTTP/2 connection with these settings, in addition to a header table of size 0.
    pub async fn h2_with(&self, to: SocketAddr, settings: &[(u16, u32)]) -> io::Result<RawH2> {
        self.h2_over(self.tcp(to).await?, settings).await
    }

    /// The same over a connection that is there already.
    pub async fn h2_over(&self, stream: TcpStream, settings: &[(u16, u32)]) -> io::Result<RawH2> {
        let mut h2 = RawH2 {
            host: stream.peer_addr()?.to_string(),
            stream: self.tls_over(stream, "h2").await?,
            next_stream: 1,
            unread: Vec::new(),
            answers: HashMap::new(),
            withholds_acks: false,
        };
        let mut payload = Vec::new();
        // So the server's fields can be read without a table.
        for (name, value) in [(setting::HEADER_TABLE_SIZE, 0)].iter().chain(settings) {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        h2.stream.write_all(PREFACE).await?;
        h2.send(kind::SETTINGS, 0, 0, &payload).await?;
        Ok(h2)
    }
}

/// One frame of the server.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Default)]
struct Arriving {
    status: Option<u16>,
    body: Vec<u8>,
    is_whole: bool,
    is_reset: bool,
}

/// One HTTP/2 connection. It reads only when it is told to.
pub struct RawH2 {
    stream: TlsStream<TcpStream>,
    host: String,
    next_stream: u32,
    unread: Vec<u8>,
    answers: HashMap<u32, Arriving>,
    /// Whether SETTINGS and PING of the server remain without acknowledgement.
    pub withholds_acks: bool,
}

impl RawH2 {
    /// Sends one frame as it is given.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(FRAME_HEAD + payload.len());
        frame.extend(&length.to_be_bytes()[1..]);
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    /// Sends the head of a request on a new stream. Returns the number of the stream.
    pub async fn head(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        is_whole: bool,
    ) -> io::Result<u32> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let host = self.host.clone();
        let all = [(":method", method), (":scheme", "https"), (":path", path), (":authority", host.as_str())];
        let mut block = Vec::new();
        for (name, value) in all.iter().chain(fields) {
            // A literal without indexing, with a new name.
            block.push(0);
            for text in [name, value] {
                put_length(&mut block, text.len());
                block.extend(text.as_bytes());
            }
        }
        let end = if is_whole { flag::END_STREAM } else { 0 };
        self.send(kind::HEADERS, flag::END_HEADERS | end, stream, &block).await?;
        Ok(stream)
    }

    pub async fn get(&mut self, path: &str) -> io::Result<u32> {
        self.head("GET", path, &[], true).await
    }

    /// The head of a POST whose body never comes, unless `data` sends it.
    pub async fn post_head(&mut self, path: &str, content_length: usize) -> io::Result<u32> {
        let length = content_length.to_string();
        let fields = [("content-type", "application/json"), ("content-length", length.as_str())];
        self.head("POST", path, &fields, false).await
    }

    /// A whole POST. A body of more than one frame must fit into the server's window.
    pub async fn post(&mut self, path: &str, body: &[u8]) -> io::Result<u32> {
        let stream = self.post_head(path, body.len()).await?;
        let mut rest = body;
        loop {
            let (now, later) = rest.split_at(rest.len().min(16 << 10));
            self.data(stream, now, later.is_empty()).await?;
            if later.is_empty() {
                return Ok(stream);
            }
            rest = later;
        }
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8], is_last: bool) -> io::Result<()> {
        self.send(kind::DATA, if is_last { flag::END_STREAM } else { 0 }, stream, bytes).await
    }

    /// Lets the server send more on a stream, or in all on stream 0.
    pub async fn window_update(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.send(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await
    }

    pub async fn reset(&mut self, stream: u32) -> io::Result<()> {
        const CANCEL: u32 = 8;
        self.send(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes()).await
    }

    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(kind::PING, 0, 0, &[7; 8]).await
    }

    /// The next frame, after the acknowledgement that it asks for, unless those are withheld. The error is
    /// `UnexpectedEof` when the server has closed the connection. May be dropped while it waits.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let frame = loop {
            if let Some(frame) = self.parse() {
                break frame;
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let asks = matches!(frame.kind, kind::SETTINGS | kind::PING) && frame.flags & flag::ACK == 0;
        if asks && !self.withholds_acks {
            let echo = if frame.kind == kind::PING { frame.payload.as_slice() } else { &[] };
            self.send(frame.kind, flag::ACK, 0, echo).await?;
        }
        self.note(&frame);
        Ok(frame)
    }

    /// Reads until the answer on this stream is whole, and lets the server send as much again as came.
    /// Answers on other streams are kept. The error is `ConnectionReset` when the server reset the stream.
    pub async fn answer(&mut self, stream: u32) -> io::Result<RawAnswer> {
        loop {
            let arriving = self.answers.entry(stream).or_default();
            if arriving.is_reset {
                self.answers.remove(&stream);
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if arriving.is_whole {
                let arrived = self.answers.remove(&stream).unwrap_or_default();
                let status = arrived.status.ok_or(io::ErrorKind::InvalidData)?;
                return Ok(RawAnswer { status, body: arrived.body });
            }
            let frame = self.next().await?;
            let length = u32::try_from(frame.payload.len()).map_err(io::Error::other)?;
            if frame.kind == kind::DATA && length > 0 {
                self.window_update(0, length).await?;
                if frame.flags & flag::END_STREAM == 0 {
                    self.window_update(frame.stream, length).await?;
                }
            }
        }
    }

    /// Reads and forgets, until the server has closed the connection.
    pub async fn until_closed(&mut self) {
        while self.next().await.is_ok() {
            self.answers.clear();
        }
    }

    fn parse(&mut self) -> Option<Frame> {
        let head: [u8; FRAME_HEAD] = self.unread.get(..FRAME_HEAD)?.try_into().ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let end = FRAME_HEAD + u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.unread.get(FRAME_HEAD..end)?.to_vec();
        self.unread.drain(..end);
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1), payload })
    }

    fn note(&mut self, frame: &Frame) {
        if frame.stream == 0 || frame.kind == kind::WINDOW_UPDATE {
            return;
        }
        let arriving = self.answers.entry(frame.stream).or_default();
        match frame.kind {
            kind::HEADERS if arriving.status.is_none() => arriving.status = status(&frame.payload),
            kind::DATA => arriving.body.extend(&frame.payload),
            kind::RST_STREAM => arriving.is_reset = true,
            _ => {}
        }
        if matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.flags & flag::END_STREAM != 0 {
            arriving.is_whole = true;
        }
    }
}

/// A length without Huffman code: seven bits, and more bytes if they are not enough (RFC 7541, section 5.1).
fn put_length(block: &mut Vec<u8>, length: usize) {
    if let Ok(short @ 0..127) = u8::try_from(length) {
        block.push(short);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        block.push(low & 127 | if rest == 0 { 0 } else { 128 });
        if rest == 0 {
            return;
        }
    }
}

/// `:status`, which comes first, perhaps after new sizes of the table.
fn status(block: &[u8]) -> Option<u16> {
    const IN_STATIC_TABLE: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let block = &block[block.iter().position(|byte| byte >> 5 != 1)?..];
    let (first, rest) = block.split_first()?;
    if let index @ 8..=14 = first & 0x7f
        && first & 0x80 != 0
    {
        return Some(IN_STATIC_TABLE[usize::from(index) - 8]);
    }
    // A literal whose name is entry 8 of the table.
    if !matches!(first, 0x48 | 0x08 | 0x18) {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let text = rest.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 { std::str::from_utf8(text).ok()?.parse().ok() } else { huffman_number(text) }
}

/// Three digits in the Huffman code of HPACK: 0 to 2 have five bits, the others six.
fn huffman_number(code: &[u8]) -> Option<u16> {
    let bits = code.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    let (mut left, mut number) = (code.len() * 8, 0);
    let peek = |left: usize, count: usize| Some(bits >> left.checked_sub(count)? & ((1 << count) - 1));
    for _ in 0..3 {
        let five = peek(left, 5)?;
        let (digit, used) = if five < 3 { (five, 5) } else { (peek(left, 6)?.checked_sub(0b01_0110)?, 6) };
        number = number * 10 + u16::try_from(digit).ok().filter(|digit| *digit < 10)?;
        left -= used;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SmallKme;

    #[tokio::test]
    async fn a_client_made_by_hand_speaks_with_a_real_server() {
        let kme = SmallKme::start().await;
        let [ca, cert, key] = SmallKme::files("alice");
        let client = RawClient::new(&ca, &cert, &key).from_address("127.0.0.2".parse().unwrap());
        let at = kme.url().trim_start_matches("https://").parse().unwrap();
        let mut h2 = client.h2(at).await.unwrap();
        let status = h2.get("/api/v1/keys/bob/status").await.unwrap();
        let keys = h2.post("/api/v1/keys/bob/enc_keys", br#"{"number": 2}"#).await.unwrap();
        let unknown =
            h2.post("/api/v1/keys/bob/dec_keys", br#"{"key_IDs": [{"key_ID": "x"}]}"#).await.unwrap();
        let nothing = h2.get(&format!("/{}", "x".repeat(500))).await.unwrap();
        let other = h2.head("DELETE", "/api/v1/keys/bob/status", &[], true).await.unwrap();
        // In any order.
        for (stream, status) in [(nothing, 404), (keys, 200), (unknown, 400), (other, 405), (status, 200)] {
            assert_eq!(h2.answer(stream).await.unwrap().status, status);
        }
        let endless = h2.post_head("/api/v1/keys/bob/enc_keys", 100).await.unwrap();
        h2.data(endless, b"{", false).await.unwrap();
        h2.ping().await.unwrap();
        let frame = loop {
            let frame = h2.next().await.unwrap();
            if frame.kind == kind::PING {
                break frame;
            }
        };
        assert_eq!((frame.flags, frame.payload), (flag::ACK, vec![7; 8]));
        h2.reset(endless).await.unwrap();
        drop(kme);
        h2.until_closed().await;
    }

    #[test]
    fn a_status_is_read_in_every_code() {
        // RFC 7541, C.6.1 and C.6.2, and plain text.
        for (block, number) in [
            (&b"\x88"[..], 200),
            (b"\x20\x8d", 404),
            (b"\x48\x82\x64\x02", 302),
            (b"\x48\x83\x64\x0e\xff", 307),
            (b"\x08\x03503", 503),
        ] {
            assert_eq!(status(block), Some(number));
        }
    }
}
