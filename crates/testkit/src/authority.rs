//! An authority for certificates, and the identities that they prove.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use kme::{Clock, ManualClock, OsRandom, SystemClock};
use mtls::identity::{
    AuthenticatedKme, AuthenticatedSae, Identity, IdentityRules, SaeIdentitySource, identify,
};
use mtls::{TlsFiles, TlsStore};
use pki::{Authority, Issued, NewAuthority, Order, Role};

/// Trust domain of every certificate here.
pub const TRUST_DOMAIN: &str = "dqkd.example";

/// An authority in its own folder, which is deleted when this is dropped.
pub struct TestAuthority {
    dir: TempDir,
    authority: Authority,
    issued: AtomicU32,
}

impl TestAuthority {
    #[expect(clippy::new_without_default, reason = "it writes files, which a default value should not")]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An authority whose time is that of `clock`.
    fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let dir = TempDir::new().unwrap();
        let new = NewAuthority { days: 1000, crl_days: 1000, ..NewAuthority::new(TRUST_DOMAIN) };
        let authority = Authority::init(dir.path(), &new, clock, Arc::new(OsRandom)).unwrap();
        Self { dir, authority, issued: AtomicU32::new(0) }
    }

    /// Its CAs are valid from 100 days ago for 1000 days; the certificates that it issues have expired.
    pub fn of_the_past() -> Self {
        let past = SystemClock.now().minus(std::time::Duration::from_hours(24 * 100));
        Self::with_clock(Arc::new(ManualClock::starting_at(past)))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn issue(&self, role: Role, id: &str) -> Issued {
        self.issue_to(role, id, &self.path("issued"))
    }

    pub fn issue_to(&self, role: Role, id: &str, out: &Path) -> Issued {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let is_server = matches!(role, Role::Kme | Role::Pool);
        let order = Order {
            role,
            id: id.to_owned(),
            cn_only: role == Role::Sae && !fits_spiffe(id),
            dns: if is_server { vec!["localhost".to_owned()] } else { Vec::new() },
            ip: if is_server { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { Vec::new() },
            days: 30,
            p12_password: None,
            file_name: Some(format!("{number}")),
            replace: false,
        };
        self.authority.issue(&order, out).unwrap()
    }

    pub fn files(&self, role: Role, id: &str) -> TlsFiles {
        let issued = self.issue(role, id);
        TlsFiles {
            ca: self.path("ca.pem"),
            cert: issued.cert,
            key: issued.key,
            crl: Some(self.path("crl.pem")),
        }
    }

    pub fn tls(&self, role: Role, id: &str) -> Arc<TlsStore> {
        TlsStore::open(self.files(role, id)).unwrap()
    }

    pub fn revoke(&self, role: Role, id: &str) {
        self.authority.revoke(role, id, 1000).unwrap();
    }
}

/// The authority that all tests of a process share.
pub fn shared() -> &'static TestAuthority {
    static SHARED: LazyLock<TestAuthority> = LazyLock::new(TestAuthority::new);
    &SHARED
}

/// Whether a SPIFFE URI can have `id` in its path.
fn fits_spiffe(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Rules that accept only a SPIFFE URI as identity.
pub fn spiffe_rules() -> IdentityRules {
    IdentityRules { trust_domain: TRUST_DOMAIN.to_owned(), sae_sources: vec![SaeIdentitySource::Spiffe] }
}

/// An SAE that proved its name with a certificate of the shared authority: by its URI, or by its common name if
/// the ID does not fit into a URI.
pub fn authenticated_sae(id: &str) -> AuthenticatedSae {
    match identity_of(Role::Sae, id) {
        Identity::Sae(sae) => sae,
        other => panic!("{other:?}"),
    }
}

/// A KME that proved its name in the same way.
pub fn authenticated_kme(id: &str) -> AuthenticatedKme {
    match identity_of(Role::Kme, id) {
        Identity::Kme(kme) => kme,
        other => panic!("{other:?}"),
    }
}

/// Issued once for each name: some tests ask thousands of times.
fn identity_of(role: Role, id: &str) -> Identity {
    static KNOWN: LazyLock<Mutex<HashMap<String, Identity>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap();
    let identity = known.entry(format!("{role:?} {id}")).or_insert_with(|| {
        let pem = std::fs::read(shared().issue(role, id).cert).unwrap();
        let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
        let sae_sources = vec![SaeIdentitySource::Spiffe, SaeIdentitySource::Cn];
        identify(&leaf, &IdentityRules { sae_sources, ..spiffe_rules() }).unwrap()
    });
    identity.clone()
}
