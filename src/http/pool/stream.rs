//! The body of a download: chunks that are copied out of the pool as the client reads, and wiped.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use zeroize::Zeroizing;

use crate::pool::{DownloadOverdue, OpenPool};

/// Bytes of one chunk: all that one download holds outside the pool's locked memory.
const CHUNK_BYTES: usize = 64 * 1024;

/// The body of a download. At the deadline the vault takes the pool away, so a client that stops reading
/// cannot keep it alive.
pub(super) struct PoolBody(OpenPool);

impl PoolBody {
    pub(super) fn new(open: OpenPool) -> Self {
        Self(open)
    }
}

impl Body for PoolBody {
    type Data = Bytes;
    type Error = DownloadOverdue;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadOverdue>>> {
        let rest_bytes = self.0.rest_bytes();
        if rest_bytes == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = Zeroizing::new(vec![0; rest_bytes.min(CHUNK_BYTES)]);
        Poll::Ready(Some(
            self.0.copy_next(&mut chunk).map(|_| Frame::data(Bytes::from_owner(WipedChunk(chunk)))),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.0.rest_bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.rest_bytes() as u64)
    }
}

/// Lets [`Bytes`] own a buffer that is wiped with its last reference.
struct WipedChunk(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for WipedChunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
