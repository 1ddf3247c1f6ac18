//! HTTP/1.1 as far as one request after the other needs it, at the least cost for the client.
//!
//! A general library costs the client about as much as TLS does, and on one machine what the client uses up is
//! taken from the servers that it measures.

use std::io;
use std::ops::Range;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::calls::Call;

/// Where reading starts; answers with many keys make it larger.
const BUFFER_BYTES: usize = 16 * 1024;
/// Longest head, and longest body.
const HEAD_MAX_BYTES: usize = 64 * 1024;
const BODY_MAX_BYTES: usize = 64 * 1024 * 1024;

/// One connection.
pub(super) struct Http1 {
    stream: TlsStream<TcpStream>,
    authority: String,
    request: Vec<u8>,
    buffer: Zeroizing<Vec<u8>>,
}

/// An answer, whose body is in the connection's buffer until the next request.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
    /// Whether the connection serves no more requests.
    pub(super) is_last: bool,
}

impl Http1 {
    pub(super) fn new(stream: TlsStream<TcpStream>, authority: String) -> Self {
        let buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
        Self { stream, authority, request: Vec::new(), buffer }
    }

    /// Sends `call` and reads the whole answer; `is_last` asks the server to end the connection after it.
    pub(super) async fn exchange(&mut self, call: &Call, is_last: bool) -> io::Result<Answer<'_>> {
        encode(call, &self.authority, is_last, &mut self.request);
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        let mut filled = 0;
        let (head, body_start) = loop {
            let so_far = self.buffer.get(..filled).unwrap_or_default();
            if let Some(end) = end_of_head(so_far) {
                let head = so_far.get(..end).and_then(Head::parse);
                let head = head.ok_or_else(|| garbled("no head of HTTP/1.1"))?;
                if head.status >= 200 {
                    break (head, end);
                }
                // Provisional: the answer proper follows.
                self.buffer.copy_within(end..filled, 0);
                filled -= end;
            } else if filled > HEAD_MAX_BYTES {
                return Err(garbled("a head that is too long"));
            } else {
                filled += self.read(filled).await?;
            }
        };
        let body = self.body(&head, body_start, filled).await?;
        let is_last = is_last || head.is_last || matches!(head.framing, Framing::ToTheEnd);
        Ok(Answer { status: head.status, body: self.buffer.get(body).unwrap_or_default(), is_last })
    }

    /// Reads the rest of the body; returns where it is in the buffer.
    async fn body(&mut self, head: &Head, start: usize, mut filled: usize) -> io::Result<Range<usize>> {
        match head.framing {
            Framing::Length(len) => {
                if len > BODY_MAX_BYTES {
                    return Err(garbled("a body that is too long"));
                }
                while filled < start + len {
                    filled += self.read(filled).await?;
                }
                Ok(start..start + len)
            }
            Framing::Chunked => loop {
                let so_far = self.buffer.get_mut(start..filled).unwrap_or_default();
                if let Some(len) = unchunk(so_far)? {
                    return Ok(start..start + len);
                }
                filled += self.read(filled).await?;
            },
            Framing::ToTheEnd => loop {
                match self.read(filled).await {
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(start..filled),
                    Err(error) => return Err(error),
                }
            },
        }
    }

    /// Reads on behind `filled` bytes; at least one.
    async fn read(&mut self, filled: usize) -> io::Result<usize> {
        if filled == self.buffer.len() {
            if filled > HEAD_MAX_BYTES + BODY_MAX_BYTES {
                return Err(garbled("an answer that is too long"));
            }
            let mut larger = Zeroizing::new(vec![0; 2 * filled]);
            larger.get_mut(..filled).unwrap_or_default().copy_from_slice(&self.buffer);
            self.buffer = larger;
        }
        match self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default()).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

fn garbled(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Writes a request.
fn encode(call: &Call, authority: &str, is_last: bool, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(if call.body.is_some() { b"POST " } else { b"GET " });
    out.extend_from_slice(call.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(authority.as_bytes());
    if is_last {
        out.extend_from_slice(b"\r\nConnection: close");
    }
    if let Some(body) = &call.body {
        out.extend_from_slice(b"\r\nContent-Type: application/json\r\nContent-Length: ");
        out.extend_from_slice(body.len().to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(call.body.as_deref().unwrap_or_default());
}

/// Where the body starts.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    ToTheEnd,
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    framing: Framing,
    is_last: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let (version, rest) = lines.next()?.split_once(' ')?;
        let status: u16 = rest.get(..3)?.parse().ok()?;
        let mut head =
            Self { status, framing: Framing::ToTheEnd, is_last: version.eq_ignore_ascii_case("HTTP/1.0") };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                // A chunked body has precedence.
                if head.framing != Framing::Chunked {
                    head.framing = Framing::Length(value.parse().ok()?);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.framing = Framing::Chunked;
            } else if name.eq_ignore_ascii_case("connection") {
                head.is_last = value.eq_ignore_ascii_case("close");
            }
        }
        if status == 204 || status == 304 {
            head.framing = Framing::Length(0);
        }
        Some(head)
    }
}

/// Moves the content of a complete chunked body to its front and returns its length; `None` when there is more to
/// come, and then nothing has moved.
fn unchunk(bytes: &mut [u8]) -> io::Result<Option<usize>> {
    let wrong = || garbled("chunks that are none");
    let mut chunks = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let digits = rest.get(..line).and_then(|line| line.split(|byte| *byte == b';').next());
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
        let len = usize::from_str_radix(digits.trim(), 16).map_err(|_| wrong())?;
        if len > BODY_MAX_BYTES {
            return Err(wrong());
        }
        let start = at + line + 2;
        if len == 0 {
            // Trailers end with an empty line, as the chunks do without any.
            let trailers = bytes.get(start..).unwrap_or_default();
            let is_complete =
                trailers.starts_with(b"\r\n") || trailers.windows(4).any(|four| four == b"\r\n\r\n");
            if !is_complete {
                return Ok(None);
            }
            break;
        }
        if bytes.len() < start + len + 2 {
            return Ok(None);
        }
        chunks.push(start..start + len);
        at = start + len + 2;
    }
    let mut written = 0;
    for chunk in chunks {
        let len = chunk.len();
        bytes.copy_within(chunk, written);
        written += len;
    }
    Ok(Some(written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_http_1_1() {
        let mut out = b"older".to_vec();
        encode(&Call { target: "/x?y=1".into(), body: None }, "h:1", false, &mut out);
        assert_eq!(out, b"GET /x?y=1 HTTP/1.1\r\nHost: h:1\r\n\r\n");
        encode(&Call { target: "/x".into(), body: Some("{}".into()) }, "h:1", true, &mut out);
        let whole =
            b"POST /x HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\nContent-Type: application/json\r\n\
            Content-Length: 2\r\n\r\n{}";
        assert_eq!(out, whole);
    }

    #[test]
    fn heads_say_where_the_body_ends() {
        let parse = |head: &str| Head::parse(head.as_bytes());
        let head = |status, framing, is_last| Some(Head { status, framing, is_last });
        assert_eq!(
            parse("HTTP/1.1 200 OK\r\ncontent-LENGTH: 12 \r\n\r\n"),
            head(200, Framing::Length(12), false)
        );
        assert_eq!(
            parse(
                "HTTP/1.1 503\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
            ),
            head(503, Framing::Chunked, true)
        );
        assert_eq!(parse("HTTP/1.0 200 OK\r\n\r\n"), head(200, Framing::ToTheEnd, true));
        assert_eq!(parse("HTTP/1.1 204 No Content\r\n\r\n"), head(204, Framing::Length(0), false));
        for wrong in [
            "",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn chunks_become_a_body_once_they_are_complete() {
        let whole = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        for end in 0..whole.len() {
            let mut part = whole[..end].to_vec();
            assert_eq!(unchunk(&mut part).unwrap(), None, "{end}");
            assert_eq!(part, whole[..end], "nothing moved");
        }
        let mut all = whole.to_vec();
        assert_eq!(unchunk(&mut all).unwrap(), Some(13));
        assert_eq!(&all[..13], b"abc0123456789");
        assert!(unchunk(&mut b"xyz\r\nabc\r\n".to_vec()).is_err());
    }
}
