//! Single connections with chosen properties, for tests of servers.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::TlsError;
use super::material::{provider, unfit};
use super::store::TlsStore;

/// Which version of TLS a connection offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferedTls {
    /// 1.3 and 1.2.
    Both,
    /// Only 1.2.
    V1_2,
    /// Only 1.3.
    V1_3,
}

/// What a connection offers to the server.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Version.
    pub tls: OfferedTls,
    /// Protocols, for example `h2`, in order of preference.
    pub alpn: &'a [&'static [u8]],
    /// Whether the client presents its certificate.
    pub certificate: bool,
}

/// Makes connections with the identity and the trust anchors of a [`TlsStore`]. The server's certificate must
/// be for the host name.
#[derive(Clone)]
pub struct Dialer(Arc<TlsStore>);

impl Dialer {
    /// A dialer with the identity in `tls`.
    pub fn new(tls: Arc<TlsStore>) -> Self {
        Self(tls)
    }

    /// Connects to `host` and completes the handshake. It has no timeout: the caller sets one.
    ///
    /// # Errors
    /// The network or the handshake failed.
    pub async fn dial(&self, host: &str, port: u16, offer: Offer<'_>) -> io::Result<TlsStream<TcpStream>> {
        let connector = self.connector(offer).map_err(io::Error::other)?;
        let name =
            ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
        let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        tcp.set_nodelay(true)?;
        connector.connect(name, tcp).await
    }

    /// A connector for many handshakes with the same `offer`.
    ///
    /// # Errors
    /// [`TlsError`] when the certificates cannot be used for a client.
    pub fn connector(&self, offer: Offer<'_>) -> Result<TlsConnector, TlsError> {
        Ok(TlsConnector::from(Arc::new(self.config(offer)?)))
    }

    fn config(&self, offer: Offer<'_>) -> Result<ClientConfig, TlsError> {
        let versions: &[_] = match offer.tls {
            OfferedTls::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
            OfferedTls::V1_2 => &[&rustls::version::TLS12],
            OfferedTls::V1_3 => &[&rustls::version::TLS13],
        };
        let material = self.0.material();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(unfit)?
            .dangerous()
            .with_custom_certificate_verifier(material.server_verifier());
        let mut config = if offer.certificate {
            let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&material.identity));
            builder.with_client_cert_resolver(Arc::new(resolver))
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = offer.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}
