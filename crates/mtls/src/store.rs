//! The certificates in force, and how they are replaced while connections are open.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kme::Timestamp;
use rustls::server::ServerConfig;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::error::TlsError;
use super::material::{Material, TlsFiles, TlsParts};
use super::versions::Versions;
use crate::identity::{Identity, IdentityError, IdentityRules, identify};

/// The certificates of one identity: those in force, and the files to read new ones from.
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

    /// Checks `parts`, which are never read again; errors use `names` for them.
    ///
    /// # Errors
    /// [`TlsError`] naming the part.
    pub fn from_parts(parts: TlsParts, names: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let material = Material::from_parts(parts, &names)?;
        Self::of(material, names, false)
    }

    /// The same identity, but trusting only the certificates in `ca_pem`, without a revocation list. Never
    /// read again.
    ///
    /// # Errors
    /// [`TlsError`] when there is no usable certificate in `ca_pem`.
    pub fn trusting(&self, ca_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        let names = TlsFiles { ca: "the given CA".into(), crl: None, ..self.files.clone() };
        let material = self.current.load().trusting(ca_pem, &names.ca)?;
        Self::of(material, names, false)
    }

    fn of(material: Material, files: TlsFiles, is_in_files: bool) -> Result<Arc<Self>, TlsError> {
        // Checked now, or the first call would fail.
        material.server_verifier()?;
        let (generation, _) = watch::channel(0);
        Ok(Arc::new(Self { files, is_in_files, current: ArcSwap::from_pointee(material), generation }))
    }

    /// Reads the files again and returns whether they changed. If so, new connections use the new files, and
    /// open ones are asked to end, so that every client is checked against them.
    ///
    /// # Errors
    /// [`TlsError`]. The old certificates stay in force.
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

    /// The earliest `nextUpdate` of the revocation lists.
    pub fn crl_next_update(&self) -> Option<Timestamp> {
        self.current.load().crl_next_update
    }

    /// The identity in the own certificate.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn own_identity(&self, rules: &IdentityRules) -> Result<Identity, IdentityError> {
        let material = self.current.load();
        material.identity.cert.first().map_or(Err(IdentityError::NoCertificate), |leaf| identify(leaf, rules))
    }

    /// Makes the handshakes of a server, with the certificates in force now.
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

    /// Notifies when they change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
