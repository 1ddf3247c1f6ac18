//! Bodies of answers whose bytes are counted until they are sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use axum::body::Body as AxumBody;
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use super::unsent::{Account, InWork};

/// Bytes on their way. hyper takes them as the connection does, so what is left counts as unsent.
pub(super) struct Piece {
    bytes: Bytes,
    account: Arc<Account>,
    age: Option<usize>,
}

impl Piece {
    fn new(bytes: Bytes, account: &Arc<Account>, is_timed: bool) -> Self {
        let age = account.add(bytes.len(), is_timed);
        Self { bytes, account: Arc::clone(account), age }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        if count > 0 {
            self.bytes.advance(count);
            self.account.subtract(count, self.age);
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.account.subtract(self.bytes.len(), self.age);
        }
    }
}

/// The body of an answer. One that is there as a whole counts from the start; one that is streamed, as far as
/// it was asked for.
pub(super) struct CountedBody {
    account: Arc<Account>,
    first: Option<Result<Frame<Piece>, axum::Error>>,
    rest: Option<AxumBody>,
}

/// `answer` with its body counted.
pub(super) fn counted(answer: Response, work: InWork) -> hyper::Response<CountedBody> {
    let (head, mut body) = answer.into_parts();
    let account = Arc::clone(work.account());
    // A lost wake-up does no harm: hyper polls again.
    let mut context = Context::from_waker(Waker::noop());
    let polled =
        if body.is_end_stream() { Poll::Ready(None) } else { Pin::new(&mut body).poll_frame(&mut context) };
    let is_over = matches!(polled, Poll::Ready(None)) || body.is_end_stream();
    let first = match polled {
        Poll::Ready(Some(frame)) => Some(frame.map(|frame| piece(frame, &account, is_over))),
        _ => None,
    };
    let data = first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref());
    work.answered(data.map_or(0, Buf::remaining));
    hyper::Response::from_parts(head, CountedBody { account, first, rest: (!is_over).then_some(body) })
}

fn piece(frame: Frame<Bytes>, account: &Arc<Account>, is_timed: bool) -> Frame<Piece> {
    frame.map_data(|bytes| Piece::new(bytes, account, is_timed))
}

impl Body for CountedBody {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(context));
        Poll::Ready(frame.map(|frame| Ok(piece(frame?, &self.account, false))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.as_ref().is_none_or(AxumBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref());
        let first = first.map_or(0, |first| first.remaining() as u64);
        let rest = self.rest.as_ref().map(Body::size_hint).unwrap_or_default();
        let mut hint = SizeHint::new();
        hint.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper().or(self.rest.is_none().then_some(0)) {
            hint.set_upper(first + upper);
        }
        hint
    }
}
