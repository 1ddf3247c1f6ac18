//! For unit tests: certificates from one authority for the whole test program, made by our own PKI, and a Postgres.

#[expect(dead_code, reason = "tests under `tests/` include the same file and need the rest")]
pub(crate) mod needs;
#[expect(dead_code, reason = "tests under `tests/` include the same file and use the rest")]
pub(crate) mod postgres;
mod postgres_tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::identity::{IdentityRules, SaeIdentitySource};
use crate::kme::{Clock, ManualClock, OsRandom, SystemClock};
use crate::pki::{Authority, Issued, NewAuthority, Order, Role};
use crate::tls::{TlsFiles, TlsStore};

/// Trust domain of every certificate here.
pub(crate) const TRUST_DOMAIN: &str = "dqkd.example";

/// An authority in a folder of its own, which goes with it.
pub(crate) struct TestAuthority {
    dir: TempDir,
    authority: Authority,
    issued: AtomicU32,
}

impl TestAuthority {
    pub(crate) fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An authority for which it is now as `clock` says.
    fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let dir = TempDir::new().unwrap();
        let new = NewAuthority { trust_domain: TRUST_DOMAIN.to_owned(), days: 1000, crl_days: 1000 };
        let authority = Authority::init(dir.path(), &new, clock, Arc::new(OsRandom)).unwrap();
        Self { dir, authority, issued: AtomicU32::new(0) }
    }

    /// The CAs are good for 1000 days from 100 days ago, its certificates have ended long since.
    pub(crate) fn of_the_past() -> Self {
        let past = SystemClock.now().minus(std::time::Duration::from_hours(24 * 100));
        Self::with_clock(Arc::new(ManualClock::starting_at(past)))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn issue(&self, role: Role, id: &str) -> Issued {
        self.issue_to(role, id, &self.path("issued"))
    }

    pub(crate) fn issue_to(&self, role: Role, id: &str, out: &Path) -> Issued {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let is_server = matches!(role, Role::Kme | Role::Pool);
        let order = Order {
            role,
            id: id.to_owned(),
            dns: if is_server { vec!["localhost".to_owned()] } else { Vec::new() },
            ip: if is_server { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { Vec::new() },
            days: 30,
            p12_password: None,
            file_name: Some(format!("{number}")),
            replace: false,
        };
        self.authority.issue(&order, out).unwrap()
    }

    pub(crate) fn files(&self, role: Role, id: &str) -> TlsFiles {
        let issued = self.issue(role, id);
        TlsFiles {
            ca: self.path("ca.pem"),
            cert: issued.cert,
            key: issued.key,
            crl: Some(self.path("crl.pem")),
        }
    }

    pub(crate) fn tls(&self, role: Role, id: &str) -> Arc<TlsStore> {
        TlsStore::open(self.files(role, id)).unwrap()
    }

    pub(crate) fn revoke(&self, role: Role, id: &str) {
        self.authority.revoke(role, id, 1000).unwrap();
    }
}

/// The authority that all tests of a process share.
pub(crate) fn shared() -> &'static TestAuthority {
    static SHARED: std::sync::LazyLock<TestAuthority> = std::sync::LazyLock::new(TestAuthority::new);
    &SHARED
}

/// Identities by SPIFFE URI alone.
pub(crate) fn spiffe_rules() -> IdentityRules {
    IdentityRules { trust_domain: TRUST_DOMAIN.to_owned(), sae_sources: vec![SaeIdentitySource::Spiffe] }
}
