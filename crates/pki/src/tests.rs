//! What is issued, parsed again, and what is refused.

use std::sync::Arc;

use kme::{ManualClock, OsRandom, Timestamp};
use mtls::identity::{IdentityRules, SaeIdentitySource, identify};
use mtls::{BundleError, open_bundle};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::*;

fn spiffe_rules() -> IdentityRules {
    IdentityRules { trust_domain: "dqkd.example".to_owned(), sae_sources: vec![SaeIdentitySource::Spiffe] }
}

struct Site {
    dir: TempDir,
    authority: Authority,
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::starting_at(Timestamp::from_ms(1_795_392_000_000)))
}

fn site() -> Site {
    let dir = TempDir::new().unwrap();
    let new = NewAuthority { trust_domain: "dqkd.example".to_owned(), days: 100, crl_days: 10 };
    let authority = Authority::init(dir.path(), &new, clock(), Arc::new(OsRandom)).unwrap();
    Site { dir, authority }
}

fn order(role: Role, id: &str) -> Order {
    Order {
        role,
        id: id.to_owned(),
        cn_only: false,
        dns: Vec::new(),
        ip: Vec::new(),
        days: 10,
        p12_password: None,
        file_name: None,
        replace: false,
    }
}

fn chain(issued: &Issued) -> Vec<CertificateDer<'static>> {
    let pem = std::fs::read(&issued.cert).unwrap();
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap()
}

impl Site {
    fn issue(&self, order: &Order) -> Result<Issued, PkiError> {
        self.authority.issue(order, self.dir.path())
    }
}

#[test]
fn each_role_gets_its_uri_and_its_usages_and_is_known_by_them() {
    let site = site();
    for (role, id, client, server) in [
        (Role::Kme, "site-a", true, true),
        (Role::Sae, "alice", true, false),
        (Role::Pool, "pool-1", false, true),
        (Role::Operator, "olga", true, false),
    ] {
        let chain = chain(&site.issue(&order(role, id)).unwrap());
        assert_eq!(chain.len(), 2, "the own certificate and the issuing CA's");
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.client_auth, usage.server_auth), (client, server), "{role}");
        assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
        assert!(!leaf.is_ca());
        let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
        assert!(issuing.is_ca());
        assert_eq!(issuing.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
        leaf.verify_signature(Some(issuing.public_key())).unwrap();
        let named = format!("{:?}", identify(&chain[0], &spiffe_rules()).unwrap());
        assert!(named.contains(id) && named.to_lowercase().starts_with(role.as_str()), "{named}");
    }
}

#[test]
fn serial_numbers_differ_and_are_positive() {
    let site = site();
    let serials: std::collections::BTreeSet<String> =
        (0..20).map(|n| site.issue(&order(Role::Sae, &format!("sae-{n}"))).unwrap().serial).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|serial| serial.len() == 32 && serial < &"8".to_owned()));
}

#[test]
fn a_bundle_opens_with_its_password_only_and_has_key_and_chain() {
    let site = site();
    let password = Zeroizing::new("pässword".to_owned());
    let issued = site.issue(&Order { p12_password: Some(password), ..order(Role::Sae, "alice") }).unwrap();
    let bytes = std::fs::read(issued.p12.as_ref().unwrap()).unwrap();
    let opened = open_bundle(&bytes, "pässword").unwrap();
    let expected: Vec<Vec<u8>> = chain(&issued).iter().map(|der| der.to_vec()).collect();
    assert_eq!(opened.chain_der, expected);
    let key_pem = std::fs::read(&issued.key).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&key_pem).unwrap();
    assert_eq!(opened.key_der.as_slice(), key.secret_der());
    assert!(matches!(open_bundle(&bytes, "password"), Err(BundleError::Open(_))));
    assert!(matches!(open_bundle(&bytes[..bytes.len() / 2], "pässword"), Err(BundleError::Open(_))));
    assert!(matches!(open_bundle(b"", ""), Err(BundleError::Open(_))));
}

#[test]
fn what_cannot_be_issued_is_refused_and_leaves_nothing() {
    let site = site();
    let files = || std::fs::read_dir(site.dir.path()).unwrap().count();
    let before = files();
    for bad in [
        order(Role::Sae, ""),
        order(Role::Sae, "a\nb"),
        order(Role::Sae, "sae 1"),
        order(Role::Kme, "site%41"),
        order(Role::Sae, "a\u{202e}b"),
        Order { cn_only: true, ..order(Role::Kme, "site a") },
        Order { cn_only: true, ..order(Role::Sae, "a\u{200b}b") },
        Order { cn_only: true, file_name: Some("x".to_owned()), ..order(Role::Sae, &"x".repeat(65)) },
        order(Role::Sae, "a/b"),
        order(Role::Sae, "../a"),
        order(Role::Sae, "ca"),
        order(Role::Kme, &"x".repeat(513)),
        Order { file_name: Some("../escape".to_owned()), ..order(Role::Sae, "a") },
        Order { dns: vec!["two words".to_owned()], ..order(Role::Kme, "site-a") },
        Order { days: 0, ..order(Role::Sae, "a") },
        Order { days: 1_000_000, ..order(Role::Sae, "a") },
    ] {
        let refused = site.issue(&bad);
        assert!(matches!(refused, Err(PkiError::Refused(_))), "{bad:?}: {refused:?}");
    }
    assert_eq!(files(), before);
}

#[test]
fn an_sae_id_that_fits_no_uri_stands_in_the_common_name() {
    let site = site();
    let id = "CN=rack 7";
    let refused = site.issue(&order(Role::Sae, id)).unwrap_err().to_string();
    assert!(refused.contains("--cn"), "{refused}");
    let issued = site.issue(&Order { cn_only: true, ..order(Role::Sae, id) }).unwrap();
    let rules = |sae_sources| IdentityRules { trust_domain: "dqkd.example".to_owned(), sae_sources };
    let leaf = &chain(&issued)[0];
    let named = identify(leaf, &rules(vec![SaeIdentitySource::Spiffe, SaeIdentitySource::Cn])).unwrap();
    assert!(format!("{named:?}").contains(id), "{named:?}");
    assert!(identify(leaf, &rules(vec![SaeIdentitySource::Spiffe])).is_err());
}

#[test]
fn nothing_is_overwritten_unless_asked() {
    let site = site();
    let first = site.issue(&order(Role::Sae, "alice")).unwrap();
    assert!(matches!(site.issue(&order(Role::Sae, "alice")), Err(PkiError::Exists(_))));
    let second = site.issue(&Order { replace: true, ..order(Role::Sae, "alice") }).unwrap();
    assert_ne!(first.serial, second.serial);
    let new = NewAuthority { trust_domain: "x".to_owned(), days: 1, crl_days: 1 };
    let again = Authority::init(site.dir.path(), &new, clock(), Arc::new(OsRandom));
    assert!(matches!(again, Err(PkiError::Exists(_))));
}

#[test]
fn revocation_is_by_name_or_serial_and_lists_every_certificate_of_the_name() {
    let site = site();
    let first = site.issue(&order(Role::Sae, "alice")).unwrap().serial;
    let second = site.issue(&Order { replace: true, ..order(Role::Sae, "alice") }).unwrap().serial;
    let other = site.issue(&order(Role::Kme, "site-a")).unwrap().serial;
    assert_eq!(site.authority.revoke(Role::Sae, "alice", 10).unwrap(), [first.clone(), second.clone()]);
    assert!(matches!(site.authority.revoke(Role::Sae, "alice", 10), Err(PkiError::NotIssued(_))));
    assert!(matches!(site.authority.revoke(Role::Kme, "alice", 10), Err(PkiError::NotIssued(_))));
    assert_eq!(
        site.authority.revoke_serial(&other.to_uppercase(), 10).unwrap(),
        std::slice::from_ref(&other)
    );
    let pem = std::fs::read(site.dir.path().join("crl.pem")).unwrap();
    let lists: Vec<_> =
        rustls::pki_types::CertificateRevocationListDer::pem_slice_iter(&pem).map(Result::unwrap).collect();
    assert_eq!(lists.len(), 2, "one of the root, one of the issuing CA");
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&lists[1]).unwrap();
    let listed: Vec<String> = list.iter_revoked_certificates().map(|r| hex::encode(r.raw_serial())).collect();
    assert_eq!(listed, [first, second, other]);
}

#[test]
fn an_authority_is_opened_where_there_is_one() {
    let site = site();
    let open = |dir: &std::path::Path| Authority::open(dir, clock(), Arc::new(OsRandom));
    open(site.dir.path()).unwrap().issue(&order(Role::Sae, "bob"), site.dir.path()).unwrap();
    let empty = TempDir::new().unwrap();
    assert!(matches!(open(empty.path()), Err(PkiError::NoAuthority(_))));
    assert!(describe(b"no certificate").is_none());
}
