//! What is issued, parsed again, and what is refused.

use std::sync::Arc;

use kme::{Clock as _, ManualClock, OsRandom, Timestamp};
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
    let new = NewAuthority { days: 100, crl_days: 10, ..NewAuthority::new("dqkd.example") };
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
    let new = NewAuthority::new("x");
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

/// Certificate and list of revocations as a daemon sees them.
fn verdict(site: &Site, issued: &Issued) -> Result<(), String> {
    let files = mtls::TlsFiles {
        ca: site.dir.path().join("ca.pem"),
        cert: issued.cert.clone(),
        key: issued.key.clone(),
        crl: Some(site.dir.path().join("crl.pem")),
    };
    mtls::TlsStore::open_daemon(files.into()).map(|_| ()).map_err(|error| kme::causes(&error))
}

fn site_with(new: NewAuthority) -> Site {
    let dir = TempDir::new().unwrap();
    let system = Arc::new(kme::SystemClock);
    let authority = Authority::init(dir.path(), &new, system, Arc::new(OsRandom)).unwrap();
    Site { dir, authority }
}

fn reopened(site: &Site, passphrase: Option<&str>) -> Authority {
    let authority = Authority::open(site.dir.path(), Arc::new(kme::SystemClock), Arc::new(OsRandom)).unwrap();
    authority.with_root_passphrase(passphrase.map(|text| Zeroizing::new(text.to_owned())))
}

fn numbers_of_lists(site: &Site) -> Vec<String> {
    let text = describe(&std::fs::read(site.dir.path().join("crl.pem")).unwrap()).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("number"))
        .map(|number| number.trim().to_owned())
        .collect()
}

#[test]
fn a_root_key_under_a_passphrase_is_needed_for_the_root_only() {
    let passphrase = Some(Zeroizing::new("correct horse".to_owned()));
    let site = site_with(NewAuthority { root_passphrase: passphrase, ..NewAuthority::new("dqkd.example") });
    let pem = std::fs::read_to_string(site.dir.path().join("authority/root.key")).unwrap();
    assert!(pem.starts_with("-----BEGIN ENCRYPTED "), "{pem}");

    let without = reopened(&site, None);
    let alice = without.issue(&order(Role::Sae, "alice"), site.dir.path()).unwrap();
    without.revoke(Role::Sae, "alice", 90).unwrap();
    assert!(verdict(&site, &alice).unwrap_err().contains("revokes the own certificate"));
    assert_eq!(numbers_of_lists(&site), ["1", "2"], "the root's list stays");
    let due = without.root_list_due().unwrap();
    assert!(due.since(kme::SystemClock.now()).as_secs() > 360 * 86_400, "{due}");
    assert!(matches!(without.revoke_issuing(90), Err(PkiError::NeedsPassphrase)));

    assert!(matches!(reopened(&site, Some("wrong")).write_crl(90), Err(PkiError::WrongPassphrase)));
    reopened(&site, Some("correct horse")).write_crl(90).unwrap();
    assert_eq!(numbers_of_lists(&site), ["3", "3"]);
}

#[test]
fn a_revoked_issuing_ca_takes_its_certificates_with_it_and_another_one_goes_on() {
    let site = site_with(NewAuthority::new("dqkd.example"));
    let authority = reopened(&site, None);
    let issue =
        |authority: &Authority, id: &str| authority.issue(&order(Role::Kme, id), site.dir.path()).unwrap();
    let old = issue(&authority, "site-a");
    verdict(&site, &old).unwrap();
    let serial = authority.revoke_issuing(90).unwrap();
    let refused = verdict(&site, &old).unwrap_err();
    // Its own list is no longer kept: it is revoked by the root's.
    assert!(refused.contains("does not cover CA") || refused.contains("revokes"), "{refused}");
    let new = issue(&authority, "site-b");
    verdict(&site, &new).unwrap();
    // The new CA has another name, and revokes in its own list.
    let text = describe(&std::fs::read(&new.cert).unwrap()).unwrap();
    assert!(text.contains("CN=dqkd issuing CA 2 of dqkd.example"), "{text}");
    let listed = authority.list().unwrap();
    let states: Vec<_> = listed.iter().map(|one| (one.role, one.id.as_str(), one.state)).collect();
    assert_eq!(
        states,
        [
            ("issuing-ca", "", State::Revoked),
            ("issuing-ca", "", State::Valid),
            ("kme", "site-a", State::Revoked),
            ("kme", "site-b", State::Valid),
        ]
    );
    assert_eq!(listed[0].serial, serial);
    let lists = describe(&std::fs::read(site.dir.path().join("crl.pem")).unwrap()).unwrap();
    assert!(lists.contains(&format!("revoked    {serial} at ")), "{lists}");
    // What the old CA issued is revoked already.
    assert!(matches!(authority.revoke(Role::Kme, "site-a", 90), Err(PkiError::NotIssued(_))));
    authority.revoke(Role::Kme, "site-b", 90).unwrap();
    assert!(verdict(&site, &new).unwrap_err().contains("revokes the own certificate"));
    // And once more.
    authority.revoke_issuing(90).unwrap();
    verdict(&site, &issue(&authority, "site-c")).unwrap();
}

#[test]
fn a_renewal_keeps_names_and_addresses_and_leaves_the_old_certificate_good() {
    let site = site_with(NewAuthority::new("dqkd.example"));
    let first = Order {
        dns: vec!["a.example".to_owned()],
        ip: vec!["192.0.2.1".parse().unwrap()],
        ..order(Role::Kme, "site-a")
    };
    let first = site.issue(&first).unwrap();
    let names = |issued: &Issued| {
        let text = describe(&std::fs::read(&issued.cert).unwrap()).unwrap();
        let (own, _) = text.split_once("\n\n").unwrap();
        let kept =
            own.lines().filter(|line| ["uri", "dns", "ip", "usage"].iter().any(|n| line.starts_with(n)));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    let (key, named) = (std::fs::read(&first.key).unwrap(), names(&first));
    let renewal =
        Renewal { role: Role::Kme, id: "site-a".to_owned(), days: None, p12_password: None, file_name: None };
    let second = site.authority.renew(&renewal, site.dir.path()).unwrap();
    assert_eq!(names(&second), named);
    assert_eq!(named.len(), 4, "{named:?}");
    assert_ne!(std::fs::read(&second.key).unwrap(), key, "a new key");
    assert!(site.authority.list().unwrap().iter().all(|one| one.state == State::Valid));
    site.authority.revoke_serial(&first.serial, 90).unwrap();
    verdict(&site, &second).unwrap();
    assert!(matches!(
        site.authority.renew(&Renewal { id: "nobody".to_owned(), ..renewal }, site.dir.path()),
        Err(PkiError::NotIssued(_))
    ));
}

#[test]
fn an_authority_of_an_earlier_version_still_works() {
    let site = site_with(NewAuthority::new("dqkd.example"));
    site.issue(&order(Role::Sae, "alice")).unwrap();
    // Its index had neither names nor CAs, and there was no list of the root apart.
    let index = site.dir.path().join("authority/index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    json["certificates"][0].as_object_mut().unwrap().remove("names");
    std::fs::write(&index, json.to_string()).unwrap();
    std::fs::remove_file(site.dir.path().join("authority/root-crl.pem")).unwrap();

    let authority = reopened(&site, None);
    let renewal =
        Renewal { role: Role::Sae, id: "alice".to_owned(), days: None, p12_password: None, file_name: None };
    let refused = authority.renew(&renewal, site.dir.path()).unwrap_err().to_string();
    assert!(refused.contains("pki issue --force"), "{refused}");
    verdict(&site, &authority.issue(&order(Role::Kme, "site-a"), site.dir.path()).unwrap()).unwrap();
    authority.revoke(Role::Sae, "alice", 90).unwrap();
    authority.revoke_issuing(90).unwrap();
    verdict(&site, &authority.issue(&order(Role::Kme, "site-b"), site.dir.path()).unwrap()).unwrap();
}

/// As somebody would who has the key of the issuing CA: without the checks of `issue`.
fn issued_past_the_checks(site: &Site, dns: &[&str], ip: &[&str]) -> Issued {
    let index = site.dir.path().join("authority/index.json");
    let before = std::fs::read(&index).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&before).unwrap();
    json.as_object_mut().unwrap().remove("permits");
    std::fs::write(&index, json.to_string()).unwrap();
    let order = Order {
        dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        ip: ip.iter().map(|ip| ip.parse().unwrap()).collect(),
        replace: true,
        ..order(Role::Kme, "site-a")
    };
    let issued = site.issue(&order).unwrap();
    std::fs::write(&index, before).unwrap();
    issued
}

#[test]
fn an_issuing_ca_with_name_constraints_can_certify_no_other_hosts() {
    let permit = |dns: &[&str], ip: &[&str]| {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let permits = Permits { dns: all(dns), ip: all(ip) };
        site_with(NewAuthority { permits, ..NewAuthority::new("dqkd.example") })
    };
    let both = permit(&["example.org"], &["192.0.2.0/24", "2001:db8::/32"]);
    let only_dns = permit(&["example.org"], &[]);
    let only_ip = permit(&[], &["192.0.2.0/24"]);
    for (site, dns, ip, is_good) in [
        (&both, &["kme.example.org"][..], &["192.0.2.7", "2001:db8::1"][..], true),
        (&both, &["example.org"], &[], true),
        (&both, &[], &[], true),
        (&both, &["kme.example.com"], &[], false),
        (&both, &["notexample.org"], &[], false),
        (&both, &[], &["198.51.100.1"], false),
        (&both, &[], &["2001:db9::1"], false),
        (&only_dns, &["kme.example.org"], &[], true),
        (&only_dns, &["kme.example.org"], &["192.0.2.7"], false),
        (&only_dns, &[], &["2001:db8::1"], false),
        (&only_ip, &[], &["192.0.2.7"], true),
        (&only_ip, &["kme.example.org"], &[], false),
        (&only_ip, &[], &["2001:db8::1"], false),
    ] {
        let order = Order {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ip: ip.iter().map(|ip| ip.parse().unwrap()).collect(),
            replace: true,
            ..order(Role::Kme, "site-a")
        };
        assert_eq!(site.issue(&order).is_ok(), is_good, "issue {dns:?} {ip:?}");
        let issued = issued_past_the_checks(site, dns, ip);
        let verdict = verdict(site, &issued);
        assert_eq!(verdict.is_ok(), is_good, "daemon {dns:?} {ip:?}: {verdict:?}");
        let openssl = std::process::Command::new("openssl")
            .arg("verify")
            .arg("-CAfile")
            .arg(site.dir.path().join("ca.pem"))
            .arg("-untrusted")
            .arg(&issued.cert)
            .arg(&issued.cert)
            .output();
        let output = openssl.expect("openssl is installed");
        assert_eq!(output.status.success(), is_good, "openssl {dns:?} {ip:?}: {output:?}");
    }
    for (dns, ip) in
        [(&["*.example.org"][..], &[][..]), (&[""], &[]), (&[], &["192.0.2.0/33"]), (&[], &["x"])]
    {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let new = NewAuthority {
            permits: Permits { dns: all(dns), ip: all(ip) },
            ..NewAuthority::new("dqkd.example")
        };
        let dir = TempDir::new().unwrap();
        let refused = Authority::init(dir.path(), &new, clock(), Arc::new(OsRandom)).err();
        assert!(matches!(refused, Some(PkiError::Refused(_))), "{dns:?} {ip:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
