//! Request bodies that are always read to their end, even if the handler drops them early.
//!
//! A request can be refused before the client has sent its whole body. If the rest were not read, HTTP/2
//! would reset the stream, and curl would report a broken connection instead of the answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Most bytes that are read of a dropped body.
const REST_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest time for which a dropped body is read.
const REST_MAX_TIME: Duration = Duration::from_secs(10);

/// A request body. If it is dropped early, a task reads the rest.
pub(super) struct WholeBody(Option<Incoming>);

impl WholeBody {
    pub(super) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl Body for WholeBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for WholeBody {
    fn drop(&mut self) {
        if let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) {
            tokio::spawn(timeout(REST_MAX_TIME, discard(body)));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut read_bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read_bytes += frame.data_ref().map_or(0, Bytes::len);
        if read_bytes > REST_MAX_BYTES {
            return;
        }
    }
}
