//! The authority: it is made once, then issues and revokes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kme::{Clock, Random, Timestamp, is_trust_domain};
use rcgen::{Issuer, KeyPair, NameConstraints, PKCS_ECDSA_P256_SHA256, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::bundle::make_bundle;
use super::files::{self, Mode};
use super::index::{Entry, Index, Names, RevokedCa};
use super::listed::Listed;
use super::lists;
use super::permits::Permits;
use super::profile::{self, Holder, Life};
use super::sealed_key;
use super::{PkiError, Role};

/// The folder with the private keys of the CAs, inside that of the authority.
const PRIVATE_DIR: &str = "authority";
const SERIAL_BYTES: usize = 16;
/// Longest life of any certificate: a century.
const DAYS_MAX: u32 = 36_525;

/// How to make an authority.
#[derive(Clone, Debug)]
pub struct NewAuthority {
    /// SPIFFE trust domain of everything it issues.
    pub trust_domain: String,
    /// Life of the root and of the issuing CA in days.
    pub days: u32,
    /// Life of the CRLs in days.
    pub crl_days: u32,
    /// What tells its CAs from those of another authority of the same trust domain.
    pub name: Option<String>,
    /// Passphrase of the root's private key.
    pub root_passphrase: Option<Zeroizing<String>>,
    /// The names that the issuing CA may certify.
    pub permits: Permits,
}

impl NewAuthority {
    /// An authority for `trust_domain` whose CAs last ten years and whose CRLs last 90 days.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            days: 3650,
            crl_days: 90,
            name: None,
            root_passphrase: None,
            permits: Permits::default(),
        }
    }
}

/// What to issue.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the holder is.
    pub role: Role,
    /// The ID of the holder.
    pub id: String,
    /// Whether the common name alone is the ID, without a SPIFFE URI. For SAEs whose IDs do not fit one.
    pub cn_only: bool,
    /// DNS names of the servers of the holder.
    pub dns: Vec<String>,
    /// IP addresses of the servers of the holder.
    pub ip: Vec<IpAddr>,
    /// Life in days.
    pub days: u32,
    /// Password of the `.p12` bundle. Without one, no bundle is made.
    pub p12_password: Option<Zeroizing<String>>,
    /// Name of the files without their endings. The ID by default.
    pub file_name: Option<String>,
    /// Whether files of that name are replaced.
    pub replace: bool,
}

/// What to renew.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// What the holder is.
    pub role: Role,
    /// The ID of the holder.
    pub id: String,
    /// Life in days; that of the last certificate if not given.
    pub days: Option<u32>,
    /// Password of the `.p12` bundle. Without one, no bundle is made.
    pub p12_password: Option<Zeroizing<String>>,
    /// Name of the files without their endings. The ID by default.
    pub file_name: Option<String>,
}

/// What was issued, and where it is.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Serial number in hexadecimal.
    pub serial: String,
    /// The certificate, then the issuing CA's; PEM.
    pub cert: PathBuf,
    /// The private key; PEM, readable by the owner of the file only.
    pub key: PathBuf,
    /// Key and chain, protected by the password.
    pub p12: Option<PathBuf>,
}

/// A certificate authority in a folder: `ca.pem`, `crl.pem`, certificates, and `authority/` with the CAs' keys.
pub struct Authority {
    pub(super) dir: PathBuf,
    pub(super) clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    root_passphrase: Option<Zeroizing<String>>,
}

impl Authority {
    /// Makes an authority in `dir`: root, issuing CA, first CRLs.
    ///
    /// # Errors
    /// [`PkiError`], also if there is an authority already.
    pub fn init(
        dir: &Path,
        new: &NewAuthority,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, PkiError> {
        checked_days(new.days)?;
        checked_trust_domain(&new.trust_domain)?;
        if new
            .name
            .as_deref()
            .is_some_and(|name| name.trim().is_empty() || !name.chars().all(kme::is_visible))
        {
            return Err(PkiError::Refused(
                "the name of an authority must be visible text, not empty".to_owned(),
            ));
        }
        let constraints = new.permits.constraints()?;
        let root_passphrase = new.root_passphrase.clone();
        let authority = Self { dir: dir.to_owned(), clock, random, root_passphrase };
        let (ca, index_path) = (authority.dir.join("ca.pem"), authority.private("index.json"));
        for path in [&ca, &index_path] {
            if path.exists() {
                return Err(PkiError::Exists(path.clone()));
            }
        }
        files::make_dir(dir, Mode::Public)?;
        files::make_dir(&dir.join(PRIVATE_DIR), Mode::Private)?;
        let _lock = files::lock(&dir.join(PRIVATE_DIR))?;
        let life = Life { now: authority.clock.now(), days: new.days };

        let root_key = new_key()?;
        let mut index = Index {
            trust_domain: new.trust_domain.clone(),
            crl_number: 0,
            issuing_serial: hex::encode(authority.serial()?),
            name: new.name.clone(),
            permits: new.permits.clone(),
            revoked_cas: Vec::new(),
            certificates: Vec::new(),
        };
        let name = ca_name("root CA", &index);
        let root_params = profile::ca(&name, 1, life, &authority.serial()?);
        let root = root_params.self_signed(&root_key)?;
        let root_pem = match &authority.root_passphrase {
            Some(passphrase) => sealed_key::seal(&root_key, passphrase, &*authority.random)?,
            None => Zeroizing::new(root_key.serialize_pem()),
        };
        files::write(&authority.private("root.key"), root_pem.as_bytes(), Mode::Private, false)?;
        let root_issuer = Issuer::from_params(&root_params, &root_key);
        authority.make_issuing(&index, constraints, life, &root_issuer, false)?;
        files::write(&ca, root.pem().as_bytes(), Mode::Public, false)?;
        authority.write_lists(&mut index, new.crl_days)?;
        Ok(authority)
    }

    /// Makes the issuing CA with the serial number in `index`.
    fn make_issuing(
        &self,
        index: &Index,
        constraints: Option<NameConstraints>,
        life: Life,
        root: &Issuer<'_, impl SigningKey>,
        replace: bool,
    ) -> Result<(), PkiError> {
        let key = new_key()?;
        // CAs of one name could not be told apart in a revocation list.
        let what = match index.revoked_cas.len() {
            0 => "issuing CA".to_owned(),
            earlier => format!("issuing CA {}", earlier + 1),
        };
        let serial = hex::decode(&index.issuing_serial).unwrap_or_default();
        let mut params = profile::ca(&ca_name(&what, index), 0, life, &serial);
        params.name_constraints = constraints;
        let issuing = params.signed_by(&key, root)?;
        let pem = Zeroizing::new(key.serialize_pem());
        files::write(&self.private("issuing.key"), pem.as_bytes(), Mode::Private, replace)?;
        files::write(&self.private("issuing.pem"), issuing.pem().as_bytes(), Mode::Public, replace)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// [`PkiError::NoAuthority`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self, PkiError> {
        let authority = Self { dir: dir.to_owned(), clock, random, root_passphrase: None };
        if authority.private("index.json").exists() {
            Ok(authority)
        } else {
            Err(PkiError::NoAuthority(dir.to_owned()))
        }
    }

    /// With the passphrase of the root's private key, for whatever needs that key.
    #[must_use]
    pub fn with_root_passphrase(self, passphrase: Option<Zeroizing<String>>) -> Self {
        Self { root_passphrase: passphrase, ..self }
    }

    /// Issues a certificate and writes `NAME.pem`, `NAME.key` and perhaps `NAME.p12` into `out`.
    ///
    /// # Errors
    /// [`PkiError`]. If a file cannot be written, those written before it stay.
    pub fn issue(&self, order: &Order, out: &Path) -> Result<Issued, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        self.issue_locked(order, out)
    }

    /// Issues a certificate for the same names as the last one of `renewal`, with a new key, in place of its files. The
    /// old certificates stay good.
    ///
    /// # Errors
    /// As [`Self::issue`], and [`PkiError::NotIssued`] if none is in force.
    pub fn renew(&self, renewal: &Renewal, out: &Path) -> Result<Issued, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        let Renewal { role, id, days, p12_password, file_name } = renewal;
        let index = self.index()?;
        let of_holder = |entry: &&Entry| entry.role == *role && entry.id == *id && entry.revoked_at.is_none();
        let last = index.certificates.iter().rfind(of_holder);
        let last = last.ok_or_else(|| PkiError::NotIssued(format!("{role} {id}")))?;
        let Some(names) = last.names.clone() else {
            return Err(PkiError::Refused(format!(
                "the names of {role} {id} were not recorded when it was issued: use `dqkd pki issue --force`"
            )));
        };
        let order = Order {
            role: *role,
            id: id.clone(),
            cn_only: names.cn_only,
            dns: names.dns,
            ip: names.ip,
            days: days.unwrap_or(names.days),
            p12_password: p12_password.clone(),
            file_name: file_name.clone(),
            replace: true,
        };
        self.issue_locked(&order, out)
    }

    fn issue_locked(&self, order: &Order, out: &Path) -> Result<Issued, PkiError> {
        checked_days(order.days)?;
        let name = file_name(order)?;
        let path = |ending: &str| out.join(format!("{name}.{ending}"));
        let p12_path = order.p12_password.as_ref().map(|_| path("p12"));
        let issued_paths = [Some(path("pem")), Some(path("key")), p12_path.clone()];
        if !order.replace
            && let Some(taken) = issued_paths.into_iter().flatten().find(|path| path.exists())
        {
            return Err(PkiError::Exists(taken));
        }
        let mut index = self.index()?;
        let serial = self.serial()?;
        let life = Life { now: self.clock.now(), days: order.days };
        let Order { role, id, cn_only, dns, ip, .. } = order;
        index.permits.check(dns, ip)?;
        let holder = Holder { role: *role, id, cn_only: *cn_only, dns, ip };
        let params = profile::leaf(holder, &index.trust_domain, life, &serial)?;
        let (issuing_pem, issuer) = self.issuing()?;
        let key = new_key()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let bundle = match &order.p12_password {
            None => None,
            Some(password) => {
                let issuing = certificate_of(&issuing_pem, &self.private("issuing.pem"))?;
                let chain: [&[u8]; 2] = [certificate.der(), &issuing];
                Some(make_bundle(&order.id, key.serialized_der(), &chain, password)?)
            }
        };
        // Listed before it is written, so that every certificate that exists can be revoked.
        index.certificates.push(Entry {
            serial: hex::encode(&serial),
            role: order.role,
            id: order.id.clone(),
            not_after: life.end(),
            names: Some(Names {
                cn_only: order.cn_only,
                dns: order.dns.clone(),
                ip: order.ip.clone(),
                days: order.days,
            }),
            revoked_at: None,
            revoked_ca: None,
        });
        self.write_index(&index)?;
        files::make_dir(out, Mode::Public)?;
        let issued =
            Issued { serial: hex::encode(&serial), cert: path("pem"), key: path("key"), p12: p12_path };
        let pem = Zeroizing::new(key.serialize_pem());
        files::write(&issued.key, pem.as_bytes(), Mode::Private, order.replace)?;
        let chain = format!("{}{issuing_pem}", certificate.pem());
        files::write(&issued.cert, chain.as_bytes(), Mode::Public, order.replace)?;
        if let (Some(path), Some(bytes)) = (&issued.p12, bundle) {
            files::write(path, &bytes, Mode::Private, order.replace)?;
        }
        Ok(issued)
    }

    /// Revokes every certificate of `role` and `id` that is in force, and writes new CRLs. Returns the serial numbers.
    ///
    /// # Errors
    /// [`PkiError::NotIssued`] if there is none.
    pub fn revoke(&self, role: Role, id: &str, crl_days: u32) -> Result<Vec<String>, PkiError> {
        self.revoke_where(&format!("{role} {id}"), crl_days, |entry| entry.role == role && entry.id == id)
    }

    /// Revokes the certificate with `serial`, in hexadecimal, and writes new CRLs.
    ///
    /// # Errors
    /// [`PkiError::NotIssued`] if there is none.
    pub fn revoke_serial(&self, serial: &str, crl_days: u32) -> Result<Vec<String>, PkiError> {
        let wanted = serial.to_ascii_lowercase().replace(':', "");
        self.revoke_where(&format!("serial number {wanted}"), crl_days, |entry| entry.serial == wanted)
    }

    /// Revokes the issuing CA, makes another one, and writes new CRLs. All certificates must be issued anew. Needs the
    /// root's private key. Returns the serial number of the revoked CA.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn revoke_issuing(&self, crl_days: u32) -> Result<String, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        checked_days(crl_days)?;
        let root = self.root()?;
        let mut index = self.index()?;
        let now = self.clock.now();
        let old_pem = files::read(&self.private("issuing.pem"))?;
        let old = certificate_of(&old_pem, &self.private("issuing.pem"))?;
        let not_after = end_of(&old).ok_or_else(|| PkiError::Damaged {
            path: self.private("issuing.pem"),
            what: "is not a certificate".to_owned(),
        })?;
        let serial = std::mem::replace(&mut index.issuing_serial, hex::encode(self.serial()?));
        index.revoked_cas.push(RevokedCa { serial: serial.clone(), not_after, revoked_at: now });
        for entry in index.certificates.iter_mut().filter(|entry| entry.revoked_ca.is_none()) {
            entry.revoked_ca = Some(serial.clone());
        }
        // The new CA ends when the root does.
        let root_pem = files::read(&self.dir.join("ca.pem"))?;
        let root_end = end_of(&certificate_of(&root_pem, &self.dir.join("ca.pem"))?).unwrap_or(not_after);
        let days = u32::try_from(root_end.since(now).as_secs() / 86_400).unwrap_or(1).clamp(1, DAYS_MAX);
        let constraints = index.permits.constraints()?;
        let number = index.revoked_cas.len();
        files::write(
            &self.private(&format!("revoked-{number}.pem")),
            old_pem.as_bytes(),
            Mode::Public,
            true,
        )?;
        // The index first: whatever fails then, the old CA stays revoked, and the command can be repeated.
        self.write_index(&index)?;
        self.make_issuing(&index, constraints, Life { now, days }, &root, true)?;
        self.write_lists(&mut index, crl_days)?;
        Ok(serial)
    }

    /// Everything that was issued, the CAs first, and its state.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn list(&self) -> Result<Vec<Listed>, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        Listed::all(&self.index()?, &files::read(&self.private("issuing.pem"))?, self.clock.now())
    }

    /// Writes new CRLs, valid for `crl_days` days. If the root's private key is under a passphrase that was not given,
    /// the root's CRL stays as it is.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn write_crl(&self, crl_days: u32) -> Result<PathBuf, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        let mut index = self.index()?;
        self.write_lists(&mut index, crl_days)
    }

    /// When the CRL of the root is due.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn root_list_due(&self) -> Result<Timestamp, PkiError> {
        lists::due(&files::read(&self.private(lists::ROOT_LIST))?)
    }

    fn revoke_where(
        &self,
        what: &str,
        crl_days: u32,
        is_meant: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<String>, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        let mut index = self.index()?;
        let now = self.clock.now();
        let mut revoked = Vec::new();
        let in_force = index.certificates.iter_mut().filter(|entry| !entry.is_revoked());
        for entry in in_force.filter(|entry| is_meant(entry)) {
            entry.revoked_at = Some(now);
            revoked.push(entry.serial.clone());
        }
        if revoked.is_empty() {
            return Err(PkiError::NotIssued(what.to_owned()));
        }
        self.write_lists(&mut index, crl_days)?;
        Ok(revoked)
    }

    pub(super) fn issuing(&self) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
        let pem = files::read(&self.private("issuing.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, self.key("issuing.key")?)?;
        Ok((pem, issuer))
    }

    pub(super) fn root(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let pem = files::read(&self.dir.join("ca.pem"))?;
        let key_pem = Zeroizing::new(files::read(&self.private("root.key"))?);
        let key = match (sealed_key::is_sealed(&key_pem), &self.root_passphrase) {
            (false, _) => KeyPair::from_pem(&key_pem)?,
            (true, None) => return Err(PkiError::NeedsPassphrase),
            (true, Some(passphrase)) => {
                sealed_key::open(&key_pem, passphrase).ok_or(PkiError::WrongPassphrase)?
            }
        };
        Ok(Issuer::from_ca_cert_pem(&pem, key)?)
    }

    /// Whether the root's private key is under a passphrase.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn has_sealed_root(&self) -> Result<bool, PkiError> {
        Ok(sealed_key::is_sealed(&Zeroizing::new(files::read(&self.private("root.key"))?)))
    }

    pub(super) fn key(&self, name: &str) -> Result<KeyPair, PkiError> {
        let pem = Zeroizing::new(files::read(&self.private(name))?);
        Ok(KeyPair::from_pem(&pem)?)
    }

    pub(super) fn index(&self) -> Result<Index, PkiError> {
        let path = self.private("index.json");
        serde_json::from_str(&files::read(&path)?)
            .map_err(|error| PkiError::Damaged { path, what: format!("is damaged: {error}") })
    }

    pub(super) fn write_index(&self, index: &Index) -> Result<(), PkiError> {
        let path = self.private("index.json");
        let text = serde_json::to_string_pretty(index)
            .map_err(|error| PkiError::Damaged { path: path.clone(), what: error.to_string() })?;
        files::write(&path, text.as_bytes(), Mode::Private, true)
    }

    pub(super) fn private(&self, name: &str) -> PathBuf {
        self.dir.join(PRIVATE_DIR).join(name)
    }

    /// A positive serial number of 16 bytes with 126 random bits.
    fn serial(&self) -> Result<Vec<u8>, PkiError> {
        let mut serial = vec![0; SERIAL_BYTES];
        self.random.fill(&mut serial)?;
        if let Some(first) = serial.first_mut() {
            *first = *first & 0x7f | 0x40;
        }
        Ok(serial)
    }
}

/// `what` is `root CA` or the like.
fn ca_name(what: &str, index: &Index) -> String {
    match &index.name {
        Some(name) => format!("dqkd {what} of {} ({name})", index.trust_domain),
        None => format!("dqkd {what} of {}", index.trust_domain),
    }
}

fn end_of(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(Timestamp::from_ms(certificate.validity().not_after.timestamp().saturating_mul(1000)))
}

fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn certificate_of(pem: &str, path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Damaged { path: path.to_owned(), what: format!("is damaged: {error}") })
}

pub(super) fn checked_days(days: u32) -> Result<(), PkiError> {
    if (1..=DAYS_MAX).contains(&days) {
        return Ok(());
    }
    Err(PkiError::Refused(format!("{days} days are not allowed; allowed are 1 to {DAYS_MAX}")))
}

fn checked_trust_domain(name: &str) -> Result<(), PkiError> {
    if is_trust_domain(name) {
        return Ok(());
    }
    Err(PkiError::Refused(format!(
        "{name:?} is not a trust domain; allowed are 1 to 255 of a-z, 0-9, dot, hyphen and underscore"
    )))
}

/// The name of the files: a name, not a path.
fn file_name(order: &Order) -> Result<&str, PkiError> {
    let name = order.file_name.as_deref().unwrap_or(&order.id);
    let is_plain = !name.starts_with('.') && !name.contains(['/', '\0']) && (1..=200).contains(&name.len());
    let is_taken = order.file_name.is_none() && matches!(name, "ca" | "crl" | PRIVATE_DIR);
    if is_plain && !is_taken {
        return Ok(name);
    }
    Err(PkiError::Refused(format!("{name:?} cannot be a file name; choose one with --name")))
}
