//! Certificates, key and revocation lists, checked and made ready for handshakes.

use std::path::Path;
use std::sync::Arc;

use kme::Timestamp;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::CertifiedKey;
use webpki::spki_for_anchor;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::chain::ChainVerifier;
use super::development;
use super::error::TlsError;
use super::files::{Contents, DaemonTls, TlsFiles};
use super::revocation::{Ca, RevocationLists, Revocations};
use super::versions::Versions;

/// One identity, ready for handshakes.
pub(super) struct Material {
    pub(super) identity: Arc<CertifiedKey>,
    pub(super) not_after: Timestamp,
    pub(super) revocations: Revocations,
    /// Changes when any file changes.
    pub(super) fingerprint: [u8; 32],
    chains: Arc<ChainVerifier>,
    server_latest: Arc<ServerConfig>,
    server_compatible: Arc<ServerConfig>,
}

/// What the listeners and clients of a daemon use.
pub(super) struct Materials {
    pub(super) main: Material,
    /// For the listener of SAEs, if they have CAs of their own.
    pub(super) saes: Option<Material>,
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

/// A CA and its place in the files.
struct Anchors {
    certificates: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
}

impl Anchors {
    fn parse(pem: &[u8], file: &Path) -> Result<Self, TlsError> {
        let certificates = certificates(pem, file)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|error| content(file, format!("has no usable CA: {error}")))?;
        }
        Ok(Self { certificates, roots })
    }
}

/// A certificate with its key, and when it ends.
struct Own {
    identity: Arc<CertifiedKey>,
    not_after: Timestamp,
}

impl Own {
    fn build(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        names: &TlsFiles,
    ) -> Result<Self, TlsError> {
        let not_after = chain
            .first()
            .and_then(end_of)
            .ok_or_else(|| content(&names.cert, "has no X.509 certificate".to_owned()))?;
        let identity = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            content(&names.key, format!("does not go with {}: {error}", names.cert.display()))
        })?;
        Ok(Self { identity: Arc::new(identity), not_after })
    }
}

impl Materials {
    /// Reads the files. What replaces `in_force` must not be older, and must not lock out this daemon or a whole CA.
    pub(super) fn load(
        tls: &DaemonTls,
        is_daemon: bool,
        in_force: Option<&Material>,
    ) -> Result<Self, TlsError> {
        let files = &tls.files;
        let contents = Contents::read(tls, is_daemon)?;
        let anchors = Anchors::parse(&contents.ca, &files.ca)?;
        let sae_anchors = match (&tls.sae_ca, &contents.sae_ca) {
            (Some(file), Some(pem)) => Some(Anchors::parse(pem, file)?),
            _ => None,
        };
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| content(&files.key, format!("has no private key in PEM form: {error}")))?;
        let own = Own::build(certificates(&contents.cert, &files.cert)?, key, files)?;
        let lists = match (&files.crl, &contents.crl) {
            (Some(file), Some(pem)) => RevocationLists::parse(pem, &tls.crl_exempt, file)?,
            _ => RevocationLists::none(),
        };
        if is_daemon && !tls.development_keys {
            refuse_development_keys(&anchors, sae_anchors.as_ref(), &own, tls)?;
        }
        if let (Some(sae), Some(file)) = (&sae_anchors, &tls.sae_ca) {
            check_disjoint(&anchors, sae, file, &files.ca)?;
        }
        let own_cas = own.identity.cert.iter().skip(1);
        let of_saes = sae_anchors.iter().flat_map(|anchors| &anchors.certificates);
        let cas: Vec<_> = anchors.certificates.iter().chain(of_saes).chain(own_cas).map(Ca).collect();
        let revocations = lists.describe(&cas);
        if let Some(crl) = &files.crl {
            let refused = |what: String| content(crl, what);
            lists.check_cover(&cas).map_err(refused)?;
            if let Some(in_force) = in_force {
                lists.check_newer(in_force.chains.lists()).map_err(refused)?;
            }
        }
        let fingerprint = contents.fingerprint();
        let ready = |roots, refused_keys, lists| {
            let chains = ChainVerifier::new(roots, lists, refused_keys);
            Material::assemble(chains, &own, revocations.clone(), fingerprint)
        };
        let saes = match sae_anchors {
            Some(anchors) => Some(ready(anchors.roots, Vec::new(), Arc::clone(&lists))?),
            None => None,
        };
        let refused_keys = saes.as_ref().map(|saes| saes.chains.root_keys()).unwrap_or_default();
        let main = ready(anchors.roots, refused_keys, lists)?;
        if is_daemon {
            main.check_own(files, in_force.is_some())?;
        }
        Ok(Self { main, saes })
    }
}

impl Material {
    /// From parts; errors use `names` for them.
    pub(super) fn from_parts(parts: TlsParts, names: &TlsFiles) -> Result<Self, TlsError> {
        let anchors = Anchors::parse(&parts.ca_pem, &names.ca)?;
        let chain = parts.chain_der.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(parts.key_der.as_slice().into()).clone_key();
        Self::without_lists(anchors, &Own::build(chain, key, names)?)
    }

    /// The same identity, but trusting only the certificates in `ca_pem`; errors use `name` for it.
    pub(super) fn trusting(&self, ca_pem: &[u8], name: &Path) -> Result<Self, TlsError> {
        let own = Own { identity: Arc::clone(&self.identity), not_after: self.not_after };
        Self::without_lists(Anchors::parse(ca_pem, name)?, &own)
    }

    fn without_lists(anchors: Anchors, own: &Own) -> Result<Self, TlsError> {
        let chains = ChainVerifier::new(anchors.roots, RevocationLists::none(), Vec::new());
        Self::assemble(chains, own, Revocations::default(), [0; 32])
    }

    fn assemble(
        chains: Arc<ChainVerifier>,
        own: &Own,
        revocations: Revocations,
        fingerprint: [u8; 32],
    ) -> Result<Self, TlsError> {
        let Own { identity, not_after } = own;
        let server = |versions| server_config(Arc::clone(&chains) as _, identity, versions);
        Ok(Self {
            server_latest: server(Versions::Latest)?,
            server_compatible: server(Versions::Compatible)?,
            identity: Arc::clone(identity),
            not_after: *not_after,
            revocations,
            fingerprint,
            chains,
        })
    }

    pub(super) fn server(&self, versions: Versions) -> Arc<ServerConfig> {
        match versions {
            Versions::Latest => Arc::clone(&self.server_latest),
            Versions::Compatible => Arc::clone(&self.server_compatible),
        }
    }

    /// Verifies servers by chain, revocation lists and host name.
    pub(super) fn server_verifier(&self) -> Arc<ChainVerifier> {
        Arc::clone(&self.chains)
    }

    /// Verifies clients by chain and revocation lists.
    pub(super) fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.chains) as _
    }

    /// For a server that verifies its clients by `verifier`.
    pub(super) fn server_with(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
        versions: Versions,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        server_config(verifier, &self.identity, versions)
    }

    /// Others refuse a daemon whose own chain is not good. While it runs, an expired certificate must not keep it from
    /// learning of revocations.
    fn check_own(&self, files: &TlsFiles, is_running: bool) -> Result<(), TlsError> {
        use rustls::CertificateError::{Expired, ExpiredContext, Revoked, UnknownIssuer};
        use rustls::Error::InvalidCertificate;
        let cert = &files.cert;
        match self.chains.check_own(&self.identity.cert, UnixTime::now()) {
            Ok(()) => Ok(()),
            Err(InvalidCertificate(Expired | ExpiredContext { .. })) if is_running => Ok(()),
            Err(InvalidCertificate(Expired | ExpiredContext { .. })) => {
                Err(content(cert, format!("has a certificate that expired at {}", self.not_after)))
            }
            Err(InvalidCertificate(Revoked)) => {
                let list = files.crl.as_deref().unwrap_or(Path::new("the revocation list"));
                Err(content(list, format!("revokes the own certificate, {}, or its CA", cert.display())))
            }
            Err(InvalidCertificate(UnknownIssuer)) => {
                let what =
                    format!("does not lead to a CA of {}: is an intermediate missing?", files.ca.display());
                Err(content(cert, what))
            }
            Err(error) => Err(content(cert, format!("would be refused by others: {error}"))),
        }
    }
}

fn content(file: &Path, what: String) -> TlsError {
    TlsError::Content { file: file.to_owned(), what }
}

/// A CA cannot vouch for SAEs only and for everybody.
fn check_disjoint(anchors: &Anchors, sae: &Anchors, sae_ca: &Path, ca: &Path) -> Result<(), TlsError> {
    let keys: Vec<_> = anchors.roots.roots.iter().map(spki_for_anchor).collect();
    for (anchor, certificate) in sae.roots.roots.iter().zip(&sae.certificates) {
        if keys.contains(&spki_for_anchor(anchor)) {
            let what = format!(
                "has CA {}, which is in {} too: a CA there vouches for everybody. Take it out of one of the files",
                Ca(certificate).name(),
                ca.display()
            );
            return Err(content(sae_ca, what));
        }
    }
    Ok(())
}

fn refuse_development_keys(
    anchors: &Anchors,
    sae: Option<&Anchors>,
    own: &Own,
    tls: &DaemonTls,
) -> Result<(), TlsError> {
    let sae_ca = tls.sae_ca.as_deref().unwrap_or(&tls.files.ca);
    let of_saes = sae.into_iter().flat_map(|anchors| &anchors.certificates);
    let all = (anchors.certificates.iter().map(|ca| (ca, tls.files.ca.as_path())))
        .chain(of_saes.map(|ca| (ca, sae_ca)))
        .chain(own.identity.cert.iter().map(|certificate| (certificate, tls.files.cert.as_path())));
    for (certificate, file) in all {
        if let Some(name) = development::certificate(certificate) {
            let what = format!(
                "has the public development certificate certs-dev/{name}, whose private key everybody has, and a \
                 listener is not on loopback: issue your own certificates (`dqkd pki`). If this is only a laboratory, \
                 set danger.public_development_keys = true"
            );
            return Err(content(file, what));
        }
    }
    Ok(())
}

/// The cryptography of every connection: AWS-LC, X25519MLKEM768 first.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn unfit(error: rustls::Error) -> TlsError {
    TlsError::Unfit(Arc::new(error))
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

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(file, format!("is not a PEM file: {error}")))?;
    if certificates.is_empty() {
        return Err(content(file, "has no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

fn end_of(leaf: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    Some(Timestamp::from_ms(certificate.validity().not_after.timestamp().saturating_mul(1000)))
}
