//! Requests and their responses.

use bytes::Bytes;
use http::{HeaderMap, Method, Version, header};
use zeroize::Zeroizing;

/// Longest body of an answer that is read: over a thousand keys of the largest size.
pub(crate) const BODY_MAX_BYTES: usize = 32 * 1024 * 1024;

/// A request before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpRequest {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// Whether the server is asked to close the connection after its answer.
    pub(crate) is_last: bool,
}

impl HttpRequest {
    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target)
    }

    /// A POST of JSON.
    pub(crate) fn post(target: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let request = Self::new(Method::POST, target).with("content-type", "application/json");
        Self { body: Bytes::from(body.into()), ..request }
    }

    /// A request without a body.
    pub(crate) fn new(method: Method, target: impl Into<String>) -> Self {
        let (target, headers, body) = (target.into(), Vec::new(), Bytes::new());
        Self { method, target, headers, body, is_last: false }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// A response. It is reused for the next answer, to reuse its memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpResponse {
    /// 0 until the answer is complete.
    pub(crate) status: u16,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// Whether the connection serves no more requests.
    pub(crate) is_last: bool,
}

impl HttpResponse {
    /// Forgets the last answer.
    pub(super) fn clear(&mut self) {
        self.status = 0;
        self.headers.clear();
        self.body.clear();
    }

    /// Makes room for a body of `len` bytes, so that it need not move while it grows.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.body.capacity() < len {
            self.body = Zeroizing::new(Vec::with_capacity(len));
        }
    }

    /// The length in the head, if there is one, checked against the bound.
    pub(super) fn content_length(&self) -> Result<Option<usize>, &'static str> {
        let mut values = self.headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(first) = values.next() else { return Ok(None) };
        if values.any(|other| other != first) {
            return Err("two different lengths of the body");
        }
        let digits = first.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .and_then(|digits| digits.parse().ok())
            .map(Some)
            .ok_or("a length of the body that is no number")
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The request was certainly not sent, so it can be sent again.
    #[error("{0}")]
    Unsent(String),
    /// The server may have acted on the request.
    #[error("{0}")]
    Broken(String),
}
