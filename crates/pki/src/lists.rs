//! The revocation lists of an authority: one of the root, one of the issuing CA in force.

use std::path::PathBuf;

use kme::Timestamp;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::PkiError;
use super::authority::{Authority, checked_days};
use super::files::{self, Mode};
use super::index::Index;
use super::profile::{self, Life};

/// The last list of the root, in the private folder: a root key under a passphrase is not there to sign another one.
pub(super) const ROOT_LIST: &str = "root-crl.pem";
/// Shortest life in days of the list of a root whose key is under a passphrase.
const SEALED_ROOT_DAYS: u32 = 365;

impl Authority {
    /// Writes the CRL of the root, the CRL of the issuing CA, and the index that goes with them. Without the passphrase
    /// of the root's key, the root's CRL stays as it is.
    pub(super) fn write_lists(&self, index: &mut Index, crl_days: u32) -> Result<PathBuf, PkiError> {
        checked_days(crl_days)?;
        index.crl_number += 1;
        let now = self.clock.now();
        let list = |days, revoked_certs| CertificateRevocationListParams {
            this_update: Life { now, days }.not_before(),
            next_update: Life { now, days }.not_after(),
            crl_number: SerialNumber::from(index.crl_number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // What has expired is refused anyway. What a revoked CA issued is refused with that CA.
        let own =
            index.certificates.iter().filter(|entry| entry.not_after > now && entry.revoked_ca.is_none());
        let of_own = own.filter_map(|entry| revoked(&entry.serial, entry.revoked_at?)).collect();
        let (_, issuing) = self.issuing()?;
        let of_issuing = list(crl_days, of_own).signed_by(&issuing)?.pem()?;
        let root_list = self.private(ROOT_LIST);
        let of_root = match self.root() {
            Ok(root) => {
                let days = if self.has_sealed_root()? { crl_days.max(SEALED_ROOT_DAYS) } else { crl_days };
                let in_life = index.revoked_cas.iter().filter(|ca| ca.not_after > now);
                let of_cas = in_life.filter_map(|ca| revoked(&ca.serial, ca.revoked_at)).collect();
                list(days, of_cas).signed_by(&root)?.pem()?
            }
            Err(PkiError::NeedsPassphrase) => files::read(&root_list)?,
            Err(error) => return Err(error),
        };
        let path = self.dir.join("crl.pem");
        // The index first: after a crash in between, `dqkd pki crl` writes the missing lists.
        self.write_index(index)?;
        files::write(&root_list, of_root.as_bytes(), Mode::Public, true)?;
        files::write(&path, format!("{of_root}{of_issuing}").as_bytes(), Mode::Public, true)?;
        Ok(path)
    }
}

/// `None` if the serial number in the index is damaged.
fn revoked(serial: &str, at: Timestamp) -> Option<RevokedCertParams> {
    Some(RevokedCertParams {
        serial_number: SerialNumber::from_slice(&hex::decode(serial).ok()?),
        revocation_time: profile::moment(at),
        reason_code: Some(RevocationReason::Unspecified),
        invalidity_date: None,
    })
}

/// When the list is due to be replaced.
pub(super) fn due(pem: &str) -> Result<Timestamp, PkiError> {
    let damaged =
        || PkiError::Damaged { path: ROOT_LIST.into(), what: "is damaged: not a revocation list".to_owned() };
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).map_err(|_| damaged())?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| damaged())?;
    let due = list.next_update().ok_or_else(damaged)?;
    Ok(Timestamp::from_ms(due.timestamp().saturating_mul(1000)))
}
