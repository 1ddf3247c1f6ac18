//! The authority: it is made once, then issues and revokes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kme::{Clock, Random, is_trust_domain};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::bundle::make_bundle;
use super::files::{self, Mode};
use super::index::{Entry, Index};
use super::profile::{self, Holder, Life};
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
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
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
        let authority = Self { dir: dir.to_owned(), clock, random };
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
        let name = format!("dqkd root CA of {}", new.trust_domain);
        let root_params = profile::ca(&name, 1, life, &authority.serial()?);
        let root = root_params.self_signed(&root_key)?;
        let issuing_serial = authority.serial()?;
        let issuing_key = new_key()?;
        let name = format!("dqkd issuing CA of {}", new.trust_domain);
        let issuing_params = profile::ca(&name, 0, life, &issuing_serial);
        let issuing =
            issuing_params.signed_by(&issuing_key, &Issuer::from_params(&root_params, &root_key))?;

        let private = [("root.key", &root_key), ("issuing.key", &issuing_key)];
        for (name, key) in private {
            let pem = Zeroizing::new(key.serialize_pem());
            files::write(&authority.private(name), pem.as_bytes(), Mode::Private, false)?;
        }
        files::write(&authority.private("issuing.pem"), issuing.pem().as_bytes(), Mode::Public, false)?;
        files::write(&ca, root.pem().as_bytes(), Mode::Public, false)?;
        let mut index = Index {
            trust_domain: new.trust_domain.clone(),
            crl_number: 0,
            issuing_serial: hex::encode(&issuing_serial),
            certificates: Vec::new(),
        };
        authority.write_lists(&mut index, new.crl_days)?;
        Ok(authority)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// [`PkiError::NoAuthority`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self, PkiError> {
        let authority = Self { dir: dir.to_owned(), clock, random };
        if authority.private("index.json").exists() {
            Ok(authority)
        } else {
            Err(PkiError::NoAuthority(dir.to_owned()))
        }
    }

    /// Issues a certificate and writes `NAME.pem`, `NAME.key` and perhaps `NAME.p12` into `out`.
    ///
    /// # Errors
    /// [`PkiError`]. If a file cannot be written, those written before it stay.
    pub fn issue(&self, order: &Order, out: &Path) -> Result<Issued, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
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
            revoked_at: None,
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

    /// Writes new CRLs, valid for `crl_days` days.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn write_crl(&self, crl_days: u32) -> Result<PathBuf, PkiError> {
        let _lock = files::lock(&self.dir.join(PRIVATE_DIR))?;
        let mut index = self.index()?;
        self.write_lists(&mut index, crl_days)
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
        let in_force = index.certificates.iter_mut().filter(|entry| entry.revoked_at.is_none());
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

    /// Writes the CRL of the root, the CRL of the issuing CA, and the index that goes with them.
    fn write_lists(&self, index: &mut Index, crl_days: u32) -> Result<PathBuf, PkiError> {
        checked_days(crl_days)?;
        index.crl_number += 1;
        let now = self.clock.now();
        let life = Life { now, days: crl_days };
        let list = |revoked_certs| CertificateRevocationListParams {
            this_update: life.not_before(),
            next_update: life.not_after(),
            crl_number: SerialNumber::from(index.crl_number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // Expired certificates are refused anyway.
        let in_life = index.certificates.iter().filter(|entry| entry.not_after > now);
        let revoked = in_life.filter_map(|entry| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&hex::decode(&entry.serial).ok()?),
                revocation_time: profile::moment(entry.revoked_at?),
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            })
        });
        let (_, issuing) = self.issuing()?;
        let of_issuing = list(revoked.collect()).signed_by(&issuing)?;
        let of_root = list(Vec::new()).signed_by(&self.root()?)?;
        let path = self.dir.join("crl.pem");
        // The index first: after a crash in between, `dqkd pki crl` writes the missing lists.
        self.write_index(index)?;
        let pem = format!("{}{}", of_root.pem()?, of_issuing.pem()?);
        files::write(&path, pem.as_bytes(), Mode::Public, true)?;
        Ok(path)
    }

    fn issuing(&self) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
        let pem = files::read(&self.private("issuing.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, self.key("issuing.key")?)?;
        Ok((pem, issuer))
    }

    fn root(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let pem = files::read(&self.dir.join("ca.pem"))?;
        Ok(Issuer::from_ca_cert_pem(&pem, self.key("root.key")?)?)
    }

    fn key(&self, name: &str) -> Result<KeyPair, PkiError> {
        let pem = Zeroizing::new(files::read(&self.private(name))?);
        Ok(KeyPair::from_pem(&pem)?)
    }

    fn index(&self) -> Result<Index, PkiError> {
        let path = self.private("index.json");
        serde_json::from_str(&files::read(&path)?)
            .map_err(|error| PkiError::Damaged { path, what: format!("is damaged: {error}") })
    }

    fn write_index(&self, index: &Index) -> Result<(), PkiError> {
        let path = self.private("index.json");
        let text = serde_json::to_string_pretty(index)
            .map_err(|error| PkiError::Damaged { path: path.clone(), what: error.to_string() })?;
        files::write(&path, text.as_bytes(), Mode::Private, true)
    }

    fn private(&self, name: &str) -> PathBuf {
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

fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn certificate_of(pem: &str, path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Damaged { path: path.to_owned(), what: format!("is damaged: {error}") })
}

fn checked_days(days: u32) -> Result<(), PkiError> {
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
