//! What a client requires of a server's certificate.

use std::fmt;
use std::sync::Arc;

use kme::{KmeId, PoolServerId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::chain::ChainVerifier;
use crate::identity::{Identity, IdentityRules, SaeIdentitySource, identify};

/// Who must be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedServer {
    /// This KME, by its SPIFFE URI. The address does not matter.
    Kme(KmeId),
    /// This pool server, by its SPIFFE URI. The address does not matter.
    Pool(PoolServerId),
    /// Any server with a certificate for the host name or address of the URL.
    HostName,
}

/// Checks chain and CRL as webpki does, but the identity instead of the host name.
pub(super) struct IdentityVerifier {
    chain: Arc<ChainVerifier>,
    expected: ExpectedServer,
    rules: IdentityRules,
}

impl IdentityVerifier {
    pub(super) fn new(chain: Arc<ChainVerifier>, expected: ExpectedServer, trust_domain: &str) -> Arc<Self> {
        let rules = IdentityRules {
            trust_domain: trust_domain.to_owned(),
            sae_sources: vec![SaeIdentitySource::Spiffe],
        };
        Arc::new(Self { chain, expected, rules })
    }
}

impl fmt::Debug for IdentityVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// The server is not the expected one.
#[derive(Debug, thiserror::Error)]
#[error("the server is not {expected} but {found}")]
struct WrongServer {
    expected: String,
    found: String,
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain.check_server(end_entity, intermediates, now)?;
        let found = identify(end_entity, &self.rules);
        let is_expected = match (&found, &self.expected) {
            (Ok(Identity::Kme(found)), ExpectedServer::Kme(expected)) => found.id() == expected,
            (Ok(Identity::Pool(found)), ExpectedServer::Pool(expected)) => found == expected,
            _ => false,
        };
        if is_expected {
            return Ok(ServerCertVerified::assertion());
        }
        let found = match found {
            Ok(found) => format!("{found:?}"),
            Err(error) => error.to_string(),
        };
        let wrong = WrongServer { expected: format!("{:?}", self.expected), found };
        Err(Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(wrong)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.chain, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.chain, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.chain)
    }
}
