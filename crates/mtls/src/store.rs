//! The certificates in force, and how they are replaced while connections are open.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kme::Timestamp;
use parking_lot::Mutex;
use rustls::server::ServerConfig;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::error::TlsError;
use super::files::{DaemonTls, TlsFiles};
use super::material::{Material, Materials, TlsParts};
use super::revocation::Revocations;
use super::versions::Versions;
use crate::identity::{Identity, IdentityError, IdentityRules, identify};

/// The certificates of one identity: those in force, and the files to read new ones from.
pub struct TlsStore {
    source: Source,
    current: ArcSwap<Material>,
    generation: watch::Sender<u64>,
    /// For the listener of SAEs, if they have CAs of their own.
    for_saes: Option<Arc<Self>>,
    problem: Mutex<Option<String>>,
}

/// Where the certificates come from.
enum Source {
    Files {
        tls: DaemonTls,
        is_daemon: bool,
    },
    /// Never read again; errors use the names.
    Memory(TlsFiles),
}

impl Source {
    fn names(&self) -> &TlsFiles {
        match self {
            Self::Files { tls, .. } => &tls.files,
            Self::Memory(names) => names,
        }
    }
}

impl fmt::Debug for TlsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStore").field("files", self.source.names()).finish_non_exhaustive()
    }
}

impl TlsStore {
    /// Reads and checks `files`, as a client of somebody else's servers does.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        Self::read(files.into(), false)
    }

    /// Reads and checks the files of a daemon. Stricter than [`Self::open`]: the own chain must lead to a trusted CA,
    /// only the owner may read the private key, and the public development keys are refused unless `tls` allows them.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn open_daemon(tls: DaemonTls) -> Result<Arc<Self>, TlsError> {
        Self::read(tls, true)
    }

    fn read(tls: DaemonTls, is_daemon: bool) -> Result<Arc<Self>, TlsError> {
        let Materials { main, saes } = Materials::load(&tls, is_daemon, None)?;
        let memory = |material| Self::of(material, Source::Memory(tls.files.clone()), None);
        let for_saes = saes.map(memory);
        Ok(Self::of(main, Source::Files { tls, is_daemon }, for_saes))
    }

    /// Checks `parts`, which are never read again; errors use `names` for them.
    ///
    /// # Errors
    /// [`TlsError`] naming the part.
    pub fn from_parts(parts: TlsParts, names: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let material = Material::from_parts(parts, &names)?;
        Ok(Self::of(material, Source::Memory(names), None))
    }

    /// The same identity, but trusting only the certificates in `ca_pem`, without a revocation list. Never
    /// read again.
    ///
    /// # Errors
    /// [`TlsError`] when there is no usable certificate in `ca_pem`.
    pub fn trusting(&self, ca_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        let names = TlsFiles { ca: "the given CA".into(), crl: None, ..self.source.names().clone() };
        let material = self.current.load().trusting(ca_pem, &names.ca)?;
        Ok(Self::of(material, Source::Memory(names), None))
    }

    fn of(material: Material, source: Source, for_saes: Option<Arc<Self>>) -> Arc<Self> {
        let (generation, _) = watch::channel(0);
        let current = ArcSwap::from_pointee(material);
        Arc::new(Self { source, current, generation, for_saes, problem: Mutex::default() })
    }

    /// What the listener of SAEs uses: the same identity, and the CAs that vouch for SAEs.
    pub fn for_saes(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self.for_saes.as_ref().unwrap_or(self))
    }

    /// Reads the files again and returns whether they changed. If so, new connections use the new files, and
    /// the certificate behind each open one is verified again: a connection whose client is refused now is cut.
    ///
    /// New revocation lists must cover every trusted CA and be newer than those in force, and the own chain must be
    /// good with them.
    ///
    /// # Errors
    /// [`TlsError`]. The old certificates and lists stay in force; [`Self::problem`] says why.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Source::Files { tls, is_daemon } = &self.source else { return Ok(false) };
        let loaded = Materials::load(tls, *is_daemon, Some(&self.current.load()));
        *self.problem.lock() = loaded.as_ref().err().map(|error| kme::causes(error));
        let Materials { main, saes } = loaded?;
        if main.fingerprint == self.current.load().fingerprint {
            return Ok(false);
        }
        if let (Some(store), Some(material)) = (&self.for_saes, saes) {
            store.replace(material);
        }
        self.replace(main);
        Ok(true)
    }

    fn replace(&self, material: Material) {
        self.current.store(Arc::new(material));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Why the files as they are now are not in force, since the last reload.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// When the own certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.current.load().not_after
    }

    /// What the lists in force cover, and until when.
    pub fn revocations(&self) -> Revocations {
        self.current.load().revocations.clone()
    }

    /// The earliest `nextUpdate` of the revocation lists.
    pub fn crl_next_update(&self) -> Option<Timestamp> {
        self.current.load().revocations.due.as_ref().map(|(due, _)| *due)
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
