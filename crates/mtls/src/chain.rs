//! Whether a chain of certificates leads to a trusted CA, and nobody on the way was revoked.
//!
//! webpki does the work. Added are two rules about whole chains: CAs that vouch for SAEs only vouch for nobody else,
//! and only the CAs that the configuration exempts by name may issue without a revocation list.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath, spki_for_anchor,
};

use super::material::provider;
use super::revocation::RevocationLists;
use super::signature_cache::caching;

/// Verifies chains of certificates.
pub(super) struct ChainVerifier {
    roots: RootCertStore,
    root_names: Vec<DistinguishedName>,
    lists: Arc<RevocationLists>,
    /// Keys of the CAs that vouch for SAEs only. A chain through one of them is refused here.
    refused_keys: Vec<SubjectPublicKeyInfoDer<'static>>,
    /// With the cache of signatures: for chains and lists.
    cached: WebPkiSupportedAlgorithms,
    /// For handshakes, whose signatures are never the same twice.
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ChainVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainVerifier").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

/// A refusal that rustls has no word for.
#[derive(thiserror::Error)]
enum Refusal {
    #[error(
        "the chain passes through a CA of tls.sae_ca, which vouches for SAEs only, at the sae listener only"
    )]
    SaesOnly,
    #[error("no revocation list covers CA {0}")]
    NotCovered(String),
    #[error("{0}")]
    Chain(webpki::Error),
}

/// rustls shows it in this way.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

/// For the own certificate, whose usage `identify` checks.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

impl ChainVerifier {
    pub(super) fn new(
        roots: RootCertStore,
        lists: Arc<RevocationLists>,
        refused_keys: Vec<SubjectPublicKeyInfoDer<'static>>,
    ) -> Arc<Self> {
        let root_names = roots.subjects();
        let provider = provider();
        let cached = caching(&provider).signature_verification_algorithms;
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { roots, root_names, lists, refused_keys, cached, algorithms })
    }

    pub(super) fn lists(&self) -> &Arc<RevocationLists> {
        &self.lists
    }

    /// The keys of the trusted CAs.
    pub(super) fn root_keys(&self) -> Vec<SubjectPublicKeyInfoDer<'static>> {
        self.roots.roots.iter().map(spki_for_anchor).collect()
    }

    /// Whether the chain is good, whatever its certificate is for.
    pub(super) fn check_own(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(CertificateError::BadEncoding.into());
        };
        self.check(leaf, intermediates, now, AnyUsage)
    }

    pub(super) fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.check(leaf, intermediates, now, KeyUsage::server_auth())
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(in_words_of_rustls)?;
        let lists: Vec<_> = self.lists.iter().collect();
        let has_exempt = self.lists.has_exempt_cas();
        let policy = if has_exempt { UnknownStatusPolicy::Allow } else { UnknownStatusPolicy::Deny };
        let revocation = RevocationOptionsBuilder::new(&lists).ok();
        let revocation = revocation.map(|options| options.with_status_policy(policy).build());
        let check_path = |path: &VerifiedPath<'_>| self.check_path(path);
        let check_path: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> = &check_path;
        let needs_check = has_exempt || !self.refused_keys.is_empty();
        let verified = certificate.verify_for_usage(
            self.cached.all,
            &self.roots.roots,
            intermediates,
            now,
            usage,
            revocation,
            needs_check.then_some(check_path),
        );
        match verified {
            Ok(_) => Ok(()),
            Err(webpki::Error::UnknownRevocationStatus) => {
                let all = std::iter::once(leaf).chain(intermediates);
                Err(Refusal::NotCovered(self.lists.first_uncovered(all)).into())
            }
            Err(error) => Err(in_words_of_rustls(error)),
        }
    }

    /// webpki calls this for each path that is good otherwise, and goes on looking if it is refused.
    fn check_path(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let leaf = path.end_entity();
        let is_refused = |key: SubjectPublicKeyInfoDer<'static>| self.refused_keys.contains(&key);
        if is_refused(spki_for_anchor(path.anchor()))
            || is_refused(leaf.subject_public_key_info())
            || path.intermediate_certificates().any(|ca| is_refused(ca.subject_public_key_info()))
        {
            return Err(webpki::Error::CertDistrusted);
        }
        let is_known = |issuer: &[u8]| self.lists.is_status_known(issuer);
        if is_known(leaf.issuer()) && path.intermediate_certificates().all(|ca| is_known(ca.issuer())) {
            return Ok(());
        }
        Err(webpki::Error::UnknownRevocationStatus)
    }
}

/// As rustls does it, for what matters to the alert and to the log.
fn in_words_of_rustls(error: webpki::Error) -> Error {
    use webpki::Error as Webpki;
    match error {
        Webpki::BadDer | Webpki::BadDerTime | Webpki::TrailingData(_) => CertificateError::BadEncoding.into(),
        Webpki::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        Webpki::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        Webpki::InvalidCertValidity => CertificateError::Expired.into(),
        Webpki::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        Webpki::CertRevoked => CertificateError::Revoked.into(),
        Webpki::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        Webpki::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose.into(),
        Webpki::IssuerNotCrlSigner => CertRevocationListError::IssuerInvalidForCrl.into(),
        Webpki::InvalidCrlSignatureForPublicKey => CertRevocationListError::BadSignature.into(),
        Webpki::CertDistrusted => Refusal::SaesOnly.into(),
        other => Refusal::Chain(other).into(),
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.root_names
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server with a good chain and a certificate for the host name of the URL.
impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_server(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
