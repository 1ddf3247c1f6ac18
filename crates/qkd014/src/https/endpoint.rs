//! A server, and the identity that calls it.

use std::io;
use std::sync::Arc;

use mtls::{Dialer, Offer, OfferedTls, TlsStore};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::url::KmeUrl;

/// Only HTTP/1.1.
pub(crate) const HTTP_1: Offer<'static> =
    Offer { tls: OfferedTls::Both, alpn: &[b"http/1.1"], certificate: true };
/// Only HTTP/2.
pub(crate) const HTTP_2: Offer<'static> = Offer { tls: OfferedTls::Both, alpn: &[b"h2"], certificate: true };
/// The version that the server prefers.
pub(crate) const ANY_HTTP: Offer<'static> =
    Offer { tls: OfferedTls::Both, alpn: &[b"h2", b"http/1.1"], certificate: true };

/// A server, and the identity that calls it. Makes the handshake's configuration only once.
pub(crate) struct Endpoint {
    url: KmeUrl,
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Endpoint {
    /// The server at `url`, which must have a certificate for that host, called with the identity in `tls`.
    pub(crate) fn new(url: &KmeUrl, tls: &Arc<TlsStore>, offer: Offer<'_>) -> Result<Self, String> {
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|_| format!("{} is neither a host name nor an IP address", url.host()))?;
        let connector = Dialer::new(Arc::clone(tls)).connector(offer).map_err(|error| kme::causes(&error))?;
        Ok(Self { url: url.clone(), connector, name })
    }

    /// Connects and completes the handshake.
    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let tcp = TcpStream::connect((self.url.host(), self.url.port())).await?;
        tcp.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), tcp).await?;
        Connection::start(stream, self.url.authority()).await
    }
}
