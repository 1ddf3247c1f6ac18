//! The certificates in force, and their replacement while connections go on.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kme::Timestamp;
use rustls::SupportedProtocolVersion;
use rustls::server::ServerConfig;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::TlsError;
use super::material::{Material, TlsFiles, TlsParts};
use crate::identity::{Identity, IdentityError, IdentityRules, identify};

/// Which versions of TLS a listener or client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// TLS 1.3 alone.
    Latest,
    /// TLS 1.3, and 1.2 for old encryptors.
    Compatible,
}

impl Versions {
    pub(super) fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static LATEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static COMPATIBLE: [&SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Latest => &LATEST,
            Self::Compatible => &COMPATIBLE,
        }
    }
}

/// One identity's certificates: those in force, and where to read new ones. Share it in an `Arc`.
pub struct TlsStore {
    files: TlsFiles,
    is_in_files: bool,
    current: ArcSwap<Material>,
    generation: watch::Sender<u64>,
}

impl fmt::Debug for TlsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStore").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsStore {
    /// Reads and checks `files`.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let material = Material::load(&files)?;
        Self::of(material, files, true)
    }

    /// Checks `parts`, which are never read again; `names` are what to call them in complaints.
    ///
    /// # Errors
    /// [`TlsError`] naming the part.
    pub fn from_parts(parts: TlsParts, names: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let material = Material::from_parts(parts, &names)?;
        Self::of(material, names, false)
    }

    /// The same identity, which trusts the certificates in `ca_pem` alone and no revocation list. Never read again.
    ///
    /// # Errors
    /// [`TlsError`] when there is no usable certificate in `ca_pem`.
    pub fn trusting(&self, ca_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        let names = TlsFiles { ca: "the given CA".into(), crl: None, ..self.files.clone() };
        let material = self.current.load().trusting(ca_pem, &names.ca)?;
        Self::of(material, names, false)
    }

    fn of(material: Material, files: TlsFiles, is_in_files: bool) -> Result<Arc<Self>, TlsError> {
        // Fails here rather than in the first call.
        material.server_verifier()?;
        let (generation, _) = watch::channel(0);
        Ok(Arc::new(Self { files, is_in_files, current: ArcSwap::from_pointee(material), generation }))
    }

    /// Reads the files again. `true` when they changed: new connections use them from now on, and open ones
    /// are asked to end, so that everybody is checked against them.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificates stay in force.
    pub fn reload(&self) -> Result<bool, TlsError> {
        if !self.is_in_files {
            return Ok(false);
        }
        let material = Material::load(&self.files)?;
        if material.fingerprint == self.current.load().fingerprint {
            return Ok(false);
        }
        material.server_verifier()?;
        self.current.store(Arc::new(material));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(true)
    }

    /// When the own certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.current.load().not_after
    }

    /// When the first of the revocation lists should have been replaced.
    pub fn crl_next_update(&self) -> Option<Timestamp> {
        self.current.load().crl_next_update
    }

    /// Whom the own certificate names.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn own_identity(&self, rules: &IdentityRules) -> Result<Identity, IdentityError> {
        let material = self.current.load();
        material.identity.cert.first().map_or(Err(IdentityError::NoCertificate), |leaf| identify(leaf, rules))
    }

    /// What makes a server's handshakes with the certificates in force now.
    pub fn acceptor(&self, versions: Versions) -> TlsAcceptor {
        TlsAcceptor::from(self.server(versions))
    }

    pub(super) fn material(&self) -> Arc<Material> {
        self.current.load_full()
    }

    pub(super) fn server(&self, versions: Versions) -> Arc<ServerConfig> {
        self.current.load().server(versions)
    }

    /// How often the certificates changed.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Tells when they change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
