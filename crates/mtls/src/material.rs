//! Certificates, key and CRLs, read from PEM files and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use kme::Timestamp;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::error::TlsError;
use super::signature_cache::{ClientVerifier, caching};
use super::versions::Versions;

/// The files of one identity, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Trust anchors.
    pub ca: PathBuf,
    /// The certificate, then its intermediates.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// Revocation lists, one of each CA of the chain. They stay in force after their `nextUpdate`.
    pub crl: Option<PathBuf>,
}

/// One identity, ready for handshakes.
pub(super) struct Material {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) crls: Vec<CertificateRevocationListDer<'static>>,
    pub(super) identity: Arc<CertifiedKey>,
    pub(super) not_after: Timestamp,
    pub(super) crl_next_update: Option<Timestamp>,
    /// Changes when any file changes.
    pub(super) fingerprint: [u8; 32],
    clients: Arc<ClientVerifier>,
    server_latest: Arc<ServerConfig>,
    server_compatible: Arc<ServerConfig>,
}

impl TlsFiles {
    /// The bytes of all files, each read once.
    fn read(&self) -> Result<Contents, TlsError> {
        let read = |file: &Path| {
            std::fs::read(file)
                .map(Zeroizing::new)
                .map_err(|source| TlsError::Read { file: file.to_owned(), source: Arc::new(source) })
        };
        Ok(Contents {
            ca: read(&self.ca)?,
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            crl: self.crl.as_deref().map(read).transpose()?,
        })
    }
}

struct Contents {
    ca: Zeroizing<Vec<u8>>,
    cert: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    crl: Option<Zeroizing<Vec<u8>>>,
}

impl Contents {
    fn fingerprint(&self) -> [u8; 32] {
        let mut all = Vec::with_capacity(4 * 32);
        let parts = [Some(&self.ca), Some(&self.cert), Some(&self.key), self.crl.as_ref()];
        for part in parts.into_iter().flatten() {
            all.extend_from_slice(digest(&SHA256, part).as_ref());
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, &all).as_ref());
        fingerprint
    }
}

/// An identity that is not in files, for example from a `.p12` bundle.
pub struct TlsParts {
    /// Trust anchors, PEM.
    pub ca_pem: Vec<u8>,
    /// The own certificate, then its intermediates, DER.
    pub chain_der: Vec<Vec<u8>>,
    /// The private key of the certificate, PKCS#8 DER.
    pub key_der: Zeroizing<Vec<u8>>,
}

impl Material {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let content = |file: &Path, what: String| TlsError::Content { file: file.to_owned(), what };
        let roots = certificates(&contents.ca, &files.ca)?;
        let chain = certificates(&contents.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| content(&files.key, format!("has no private key in PEM form: {error}")))?;
        let crls = match (&files.crl, &contents.crl) {
            (Some(file), Some(pem)) => revocation_lists(pem, file)?,
            _ => Vec::new(),
        };
        Self::build(roots, chain, key, crls, contents.fingerprint(), files)
    }

    /// From parts; errors use `names` for them.
    pub(super) fn from_parts(parts: TlsParts, names: &TlsFiles) -> Result<Self, TlsError> {
        let roots = certificates(&parts.ca_pem, &names.ca)?;
        let chain = parts.chain_der.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(parts.key_der.as_slice().into()).clone_key();
        Self::build(roots, chain, key, Vec::new(), [0; 32], names)
    }

    fn build(
        anchors: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        crls: Vec<CertificateRevocationListDer<'static>>,
        fingerprint: [u8; 32],
        names: &TlsFiles,
    ) -> Result<Self, TlsError> {
        let content = |file: &Path, what: String| TlsError::Content { file: file.to_owned(), what };
        let not_after = chain
            .first()
            .and_then(end_of)
            .ok_or_else(|| content(&names.cert, "has no X.509 certificate".to_owned()))?;
        let identity = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            content(&names.key, format!("does not go with {}: {error}", names.cert.display()))
        })?;
        Self::assemble(trust(anchors, &names.ca)?, crls, Arc::new(identity), not_after, fingerprint)
    }

    /// The same identity, but trusting only the certificates in `ca_pem`; errors use `name` for it.
    pub(super) fn trusting(&self, ca_pem: &[u8], name: &Path) -> Result<Self, TlsError> {
        let roots = trust(certificates(ca_pem, name)?, name)?;
        Self::assemble(roots, Vec::new(), Arc::clone(&self.identity), self.not_after, [0; 32])
    }

    fn assemble(
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
        identity: Arc<CertifiedKey>,
        not_after: Timestamp,
        fingerprint: [u8; 32],
    ) -> Result<Self, TlsError> {
        let roots = Arc::new(roots);
        let clients = client_verifier(&roots, &crls)?;
        let server = |versions| server_config(Arc::clone(&clients) as _, &identity, versions);
        Ok(Self {
            server_latest: server(Versions::Latest)?,
            server_compatible: server(Versions::Compatible)?,
            crl_next_update: crls.iter().filter_map(next_update).min(),
            fingerprint,
            clients,
            roots,
            crls,
            identity,
            not_after,
        })
    }

    pub(super) fn server(&self, versions: Versions) -> Arc<ServerConfig> {
        match versions {
            Versions::Latest => Arc::clone(&self.server_latest),
            Versions::Compatible => Arc::clone(&self.server_compatible),
        }
    }

    /// Verifies clients by chain and CRL.
    pub(super) fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.clients) as _
    }

    /// For a server that verifies its clients by `verifier`.
    pub(super) fn server_with(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
        versions: Versions,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        server_config(verifier, &self.identity, versions)
    }

    /// Verifies servers by chain, CRL and host name.
    pub(super) fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.crls.iter().cloned())
            .build()
            .map_err(|error| unfit(rustls::Error::General(error.to_string())))
    }
}

/// The cryptography of every connection: AWS-LC, X25519MLKEM768 first.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn unfit(error: rustls::Error) -> TlsError {
    TlsError::Unfit(Arc::new(error))
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
) -> Result<Arc<ClientVerifier>, TlsError> {
    let provider = provider();
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), caching(&provider))
        .with_crls(crls.iter().cloned())
        .build()
        .map_err(|error| unfit(rustls::Error::General(error.to_string())))?;
    let algorithms = provider.signature_verification_algorithms;
    Ok(Arc::new(ClientVerifier { chain, algorithms }))
}

fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    identity: &Arc<CertifiedKey>,
    versions: Versions,
) -> Result<Arc<ServerConfig>, TlsError> {
    let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(identity));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.list())
        .map_err(unfit)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would not be checked against certificates and CRL again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn trust(anchors: Vec<CertificateDer<'static>>, file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in anchors {
        roots.add(certificate).map_err(|error| TlsError::Content {
            file: file.to_owned(),
            what: format!("has no usable CA: {error}"),
        })?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |what: String| TlsError::Content { file: file.to_owned(), what };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(format!("is not a PEM file: {error}")))?;
    if certificates.is_empty() {
        return Err(content("has no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

fn revocation_lists(pem: &[u8], file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let content = |what: String| TlsError::Content { file: file.to_owned(), what };
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(format!("is not a PEM file: {error}")))?;
    if lists.is_empty() {
        return Err(content("has no revocation list in PEM form".to_owned()));
    }
    Ok(lists)
}

fn next_update(list: &CertificateRevocationListDer<'static>) -> Option<Timestamp> {
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(list).ok()?;
    Some(Timestamp::from_ms(list.next_update()?.timestamp().saturating_mul(1000)))
}

fn end_of(leaf: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    Some(Timestamp::from_ms(certificate.validity().not_after.timestamp().saturating_mul(1000)))
}
