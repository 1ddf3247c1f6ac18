//! Marks each answer with the key exchange that protected its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::NamedGroup;
use tokio::net::TcpStream;
use tower::Service;

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether the key exchange of the connection was hybrid, that is, classical and post-quantum at once. In the
/// extensions of every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HybridKeyExchange(pub bool);

/// Connects, and records the key exchange of the connection.
#[derive(Clone)]
pub(super) struct MarkingConnector(pub(super) HttpsConnector<HttpConnector>);

impl Service<Uri> for MarkingConnector {
    type Response = MarkedStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<MarkedStream, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.0.call(uri).map(|connected| connected.map(MarkedStream::new)).boxed()
    }
}

/// One connection.
pub(super) struct MarkedStream {
    stream: Stream,
    hybrid: HybridKeyExchange,
}

impl MarkedStream {
    fn new(stream: Stream) -> Self {
        let group = match &stream {
            MaybeHttpsStream::Https(tls) => tls.inner().get_ref().1.negotiated_key_exchange_group(),
            MaybeHttpsStream::Http(_) => None,
        };
        let hybrid = group.is_some_and(|group| {
            matches!(group.name(), NamedGroup::X25519MLKEM768 | NamedGroup::secp256r1MLKEM768)
        });
        Self { stream, hybrid: HybridKeyExchange(hybrid) }
    }
}

impl Connection for MarkedStream {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.hybrid)
    }
}

impl Read for MarkedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for MarkedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}
