//! The bytes of one connection, below HTTP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::unsent::Account;

/// Most bytes that the system keeps for sending beyond those that are under way. So a client that does not
/// read is noticed soon, and takes little memory of the system. A client that does read is seen to do so with
/// every half of this: the slowest that counts as reading takes that in
/// [`super::ListenerLimits::unread_timeout`], by default 52 kbit/s.
const NOT_SENT_BYTES: u32 = 128 * 1024;

/// Prepares the socket of a new connection.
pub(super) fn prepare(stream: &TcpStream) {
    // Without these the connection works all the same.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(NOT_SENT_BYTES);
}

/// A stream over TCP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// A stream that, after a cut, is closed without waiting for its client to read: what was not sent is
/// forgotten.
pub(super) struct Wire<S: Stream> {
    stream: S,
    account: Arc<Account>,
}

impl<S: Stream> Wire<S> {
    pub(super) fn new(stream: S, account: Arc<Account>) -> Self {
        Self { stream, account }
    }
}

impl<S: Stream> Drop for Wire<S> {
    fn drop(&mut self) {
        if self.account.is_cut() {
            let _ = self.stream.tcp().set_zero_linger();
        }
    }
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
