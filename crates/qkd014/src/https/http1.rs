//! HTTP/1.1, one request after the other. `httparse` reads heads and chunk sizes.
//!
//! A general library costs the load generator about as much processor time as TLS, and on a shared machine
//! the measured servers lose that time. This one also reads answers with keys directly into wiped memory.

use std::io;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use httparse::Status;
use kme::append_wiped;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::message::{BODY_MAX_BYTES, HttpRequest, HttpResponse, Trouble};

/// Most bytes that are read at once; also the longest head.
const BUFFER_BYTES: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// One connection.
pub(super) struct Http1<S> {
    stream: S,
    authority: String,
    outgoing: Vec<u8>,
    incoming: Incoming,
    is_used: bool,
}

/// How the end of a body is found.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    /// The server closes the connection.
    ToTheEnd,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    pub(super) fn new(stream: S, authority: String) -> Self {
        Self { stream, authority, outgoing: Vec::new(), incoming: Incoming::default(), is_used: false }
    }

    /// Sends `request` and reads the whole answer.
    pub(super) async fn exchange(
        &mut self,
        request: &HttpRequest,
        response: &mut HttpResponse,
    ) -> Result<(), Trouble> {
        encode(request, &self.authority, &mut self.outgoing)?;
        if std::mem::replace(&mut self.is_used, true) {
            self.check_open()?;
        }
        let sent = self.send().await;
        // A server may refuse a long request before it has read it all.
        let received = self.incoming.answer(&mut self.stream, response).await;
        self.incoming.wipe();
        if let Err(error) = received {
            return Err(Trouble::Broken(format!("the connection broke: {}", sent.err().unwrap_or(error))));
        }
        response.is_last |= request.is_last || sent.is_err();
        Ok(())
    }

    /// Notices a server that closed the connection since the last answer.
    fn check_open(&mut self) -> Result<(), Trouble> {
        let mut byte = [0];
        match self.stream.read(&mut byte).now_or_never() {
            None => Ok(()),
            Some(Ok(0)) => Err(Trouble::Unsent("the server had closed the connection".to_owned())),
            Some(Ok(_)) => Err(Trouble::Unsent("the server sent an answer to no request".to_owned())),
            Some(Err(error)) => Err(Trouble::Unsent(format!("the connection had broken: {error}"))),
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.outgoing).await?;
        self.stream.flush().await
    }
}

/// Writes `request` into `out`.
fn encode(request: &HttpRequest, authority: &str, out: &mut Vec<u8>) -> Result<(), Trouble> {
    out.clear();
    let mut line = |parts: &[&str]| {
        // The caller's text must not end a line early.
        if parts.iter().any(|part| part.bytes().any(|byte| byte.is_ascii_control())) {
            return Err(Trouble::Unsent("a request with control characters in its head".to_owned()));
        }
        for part in parts.iter().chain(&["\r\n"]) {
            out.extend_from_slice(part.as_bytes());
        }
        Ok(())
    };
    line(&[request.method.as_str(), " ", &request.target, " HTTP/1.1"])?;
    line(&["host: ", authority])?;
    for (name, value) in &request.headers {
        line(&[name, ": ", value])?;
    }
    if request.is_last {
        line(&["connection: close"])?;
    }
    if !request.body.is_empty() || request.method != Method::GET {
        line(&["content-length: ", &request.body.len().to_string()])?;
    }
    line(&[])?;
    out.extend_from_slice(&request.body);
    Ok(())
}

/// Bytes that were read but not used yet.
struct Incoming {
    buffer: Zeroizing<Vec<u8>>,
    start: usize,
    end: usize,
    /// How far the buffer was filled since it was last wiped.
    touched: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: Zeroizing::new(vec![0; BUFFER_BYTES]), start: 0, end: 0, touched: 0 }
    }
}

impl Incoming {
    /// Reads a whole answer.
    async fn answer(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        response: &mut HttpResponse,
    ) -> io::Result<()> {
        let (status, framing) = loop {
            match self.head(response)? {
                // A provisional answer: the final one follows.
                Some((..200, _)) => {}
                Some(head) => break head,
                None => self.fill_or_fail(stream).await?,
            }
        };
        match framing {
            Framing::Length(len) => {
                response.reserve(len.min(BODY_MAX_BYTES));
                self.append(len, stream, &mut response.body).await?;
            }
            Framing::Chunked => self.chunks(stream, &mut response.body).await?,
            Framing::ToTheEnd => loop {
                self.append(self.end - self.start, stream, &mut response.body).await?;
                if self.fill(stream).await? == 0 {
                    break;
                }
            },
        }
        response.is_last |= framing == Framing::ToTheEnd || self.start != self.end;
        response.status = status;
        Ok(())
    }

    /// Takes a head, once it is complete; returns its status, and how the body ends.
    fn head(&mut self, response: &mut HttpResponse) -> io::Result<Option<(u16, Framing)>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Status::Complete(len) = head.parse(bytes).map_err(|error| garbled(&error.to_string()))? else {
            return Ok(None);
        };
        response.clear();
        let status = head.code.unwrap_or_default();
        response.version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
        for httparse::Header { name, value } in head.headers.iter() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| garbled("a header's name"))?;
            let value = HeaderValue::from_bytes(value).map_err(|_| garbled("a header's value"))?;
            response.headers.append(name, value);
        }
        self.start += len;
        let framing = framing(status, response).map_err(garbled)?;
        response.is_last = is_last(response);
        Ok(Some((status, framing)))
    }

    /// A chunked body, with its trailers.
    async fn chunks(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        body: &mut Zeroizing<Vec<u8>>,
    ) -> io::Result<()> {
        loop {
            let (used, len) = loop {
                let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
                match httparse::parse_chunk_size(bytes).map_err(|_| garbled("a chunk's size"))? {
                    Status::Complete(size) => break size,
                    Status::Partial => self.fill_or_fail(stream).await?,
                }
            };
            self.start += used;
            if len == 0 {
                break;
            }
            self.append(usize::try_from(len).unwrap_or(usize::MAX), stream, body).await?;
            while self.end - self.start < 2 {
                self.fill_or_fail(stream).await?;
            }
            if self.buffer.get(self.start..self.start + 2) != Some(b"\r\n") {
                return Err(garbled("a chunk's end"));
            }
            self.start += 2;
        }
        loop {
            let mut trailers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
            let parsed = httparse::parse_headers(bytes, &mut trailers);
            if let Status::Complete((used, _)) = parsed.map_err(|error| garbled(&error.to_string()))? {
                self.start += used;
                return Ok(());
            }
            self.fill_or_fail(stream).await?;
        }
    }

    /// Appends the next `len` bytes to `body`.
    async fn append(
        &mut self,
        mut len: usize,
        stream: &mut (impl AsyncRead + Unpin),
        body: &mut Zeroizing<Vec<u8>>,
    ) -> io::Result<()> {
        if len > BODY_MAX_BYTES - body.len().min(BODY_MAX_BYTES) {
            return Err(garbled("a body that is too long"));
        }
        loop {
            let piece = len.min(self.end - self.start);
            append_wiped(body, self.buffer.get(self.start..self.start + piece).unwrap_or_default());
            self.start += piece;
            len -= piece;
            if len == 0 {
                return Ok(());
            }
            self.fill_or_fail(stream).await?;
        }
    }

    /// Reads more bytes; 0 if the server has closed the connection.
    async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            return Err(garbled("a head that is too long"));
        }
        let read = stream.read(self.buffer.get_mut(self.end..).unwrap_or_default()).await?;
        self.end += read;
        self.touched = self.touched.max(self.end);
        Ok(read)
    }

    async fn fill_or_fail(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        if self.fill(stream).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before the answer did"));
        }
        Ok(())
    }

    fn wipe(&mut self) {
        self.buffer.get_mut(..self.touched).unwrap_or_default().zeroize();
        (self.start, self.end, self.touched) = (0, 0, 0);
    }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {what}"))
}

fn framing(status: u16, response: &HttpResponse) -> Result<Framing, &'static str> {
    if status < 200 || status == 204 || status == 304 {
        return Ok(Framing::Length(0));
    }
    // It takes precedence over a length.
    if response.headers.contains_key(header::TRANSFER_ENCODING) {
        let codings = lists(&response.headers, &header::TRANSFER_ENCODING);
        let is_chunked = codings.last().is_some_and(|last| last.eq_ignore_ascii_case("chunked"));
        return Ok(if is_chunked { Framing::Chunked } else { Framing::ToTheEnd });
    }
    Ok(response.content_length()?.map_or(Framing::ToTheEnd, Framing::Length))
}

fn is_last(response: &HttpResponse) -> bool {
    let mut options = lists(&response.headers, &header::CONNECTION);
    if response.version == Version::HTTP_10 {
        return !options.any(|option| option.eq_ignore_ascii_case("keep-alive"));
    }
    options.any(|option| option.eq_ignore_ascii_case("close"))
}

/// The entries of all headers called `name`.
fn lists<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// Sends a request to a server that answers `whole`, in pieces of `piece` bytes, and closes if `closes`.
    async fn answer(whole: &[u8], piece: usize, closes: bool) -> Result<HttpResponse, Trouble> {
        let (client, mut server) = duplex(64);
        let whole = whole.to_vec();
        let serving = tokio::spawn(async move {
            read_request(&mut server).await;
            for piece in whole.chunks(piece) {
                server.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            (!closes).then_some(server)
        });
        let mut connection = Http1::new(client, "h".to_owned());
        let mut response = HttpResponse::default();
        let result = connection.exchange(&HttpRequest::get("/x"), &mut response).await;
        assert!(connection.incoming.buffer.iter().all(|byte| *byte == 0), "nothing stays in the buffer");
        serving.abort();
        result.map(|()| response)
    }

    async fn read_request(server: &mut DuplexStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(server.read_u8().await.unwrap());
        }
    }

    #[test]
    fn requests_are_those_of_http_1_1() {
        let encoded = |request: &HttpRequest| {
            let mut out = b"older".to_vec();
            encode(request, "h:1", &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        assert_eq!(encoded(&HttpRequest::get("/x?y=1")).unwrap(), "GET /x?y=1 HTTP/1.1\r\nhost: h:1\r\n\r\n");
        let post = HttpRequest { is_last: true, ..HttpRequest::post("/x", "{}") };
        let whole = "POST /x HTTP/1.1\r\nhost: h:1\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: 2\r\n\r\n{}";
        assert_eq!(encoded(&post).unwrap(), whole);
        let bare = HttpRequest::new(Method::POST, "/x");
        assert!(encoded(&bare).unwrap().ends_with("\r\ncontent-length: 0\r\n\r\n"));
        let split = HttpRequest::get("/x").with("from", "a\r\nhost: b");
        assert!(matches!(encoded(&split), Err(Trouble::Unsent(_))), "no header within a header");
    }

    #[tokio::test]
    async fn a_body_ends_where_its_head_says_however_it_comes() {
        let cases: [(&str, u16, &str, bool); 6] = [
            ("HTTP/1.1 200 OK\r\ncontent-LENGTH: 12 \r\n\r\nHello, world", 200, "Hello, world", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, Close\r\n\r\n{}", 200, "{}", true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204, "", false),
            ("HTTP/1.0 503 No\r\nContent-Length: 2\r\n\r\nno", 503, "no", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}", 200, "{}", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n\
                 3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n",
                200,
                "abc0123456789",
                false,
            ),
        ];
        for (whole, status, body, is_last) in cases {
            for piece in [1, 7, whole.len()] {
                let response = answer(whole.as_bytes(), piece, false).await.unwrap();
                let read = String::from_utf8(response.body.to_vec()).unwrap();
                assert_eq!(
                    (response.status, read.as_str(), response.is_last),
                    (status, body, is_last),
                    "{whole}"
                );
            }
        }
        let more = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{} and more";
        let response = answer(more, more.len(), false).await.unwrap();
        assert_eq!((response.body.as_slice(), response.is_last), (&b"{}"[..], true));
        let whole = b"HTTP/1.1 200 OK\r\n\r\nuntil the end";
        let response = answer(whole, 5, true).await.unwrap();
        assert_eq!((response.body.as_slice(), response.is_last), (&b"until the end"[..], true));
    }

    #[tokio::test]
    async fn answers_that_are_no_http_break_off_or_are_too_long_are_trouble() {
        let too_long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY_MAX_BYTES + 1);
        let long_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(BUFFER_BYTES));
        for wrong in [
            "",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\n",
            &too_long,
            &long_head,
        ] {
            let result = answer(wrong.as_bytes(), 100, true).await;
            assert!(matches!(result, Err(Trouble::Broken(_))), "{wrong}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_request_on_a_connection_that_the_server_closed_is_surely_not_sent() {
        let (client, mut server) = duplex(1024);
        let serving = tokio::spawn(async move {
            read_request(&mut server).await;
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        });
        let mut connection = Http1::new(client, "h".to_owned());
        let mut response = HttpResponse::default();
        connection.exchange(&HttpRequest::get("/x"), &mut response).await.unwrap();
        serving.await.unwrap();
        let second = connection.exchange(&HttpRequest::get("/x"), &mut response).await;
        assert!(matches!(second, Err(Trouble::Unsent(_))), "{second:?}");
    }
}
