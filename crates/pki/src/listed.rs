//! What an authority has issued, and the state of each certificate.

use kme::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::PkiError;
use super::index::Index;

/// The state of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In force.
    Valid,
    /// Past its end.
    Expired,
    /// Revoked, by itself or with the CA that issued it.
    Revoked,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its role, or `issuing-ca`.
    pub role: &'static str,
    /// The ID of the holder. A CA's is empty.
    pub id: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// Its state.
    pub state: State,
}

impl Listed {
    pub(super) fn all(index: &Index, issuing_pem: &str, now: Timestamp) -> Result<Vec<Self>, PkiError> {
        let state = |is_revoked: bool, not_after: Timestamp| match (is_revoked, not_after <= now) {
            (true, _) => State::Revoked,
            (false, true) => State::Expired,
            (false, false) => State::Valid,
        };
        let ca = |serial: &str, not_after, is_revoked| Self {
            role: "issuing-ca",
            id: String::new(),
            serial: serial.to_owned(),
            not_after,
            state: state(is_revoked, not_after),
        };
        let damaged = || PkiError::Damaged { path: "issuing.pem".into(), what: "is damaged".to_owned() };
        let der = CertificateDer::from_pem_slice(issuing_pem.as_bytes()).map_err(|_| damaged())?;
        let (_, issuing) = X509Certificate::from_der(&der).map_err(|_| damaged())?;
        let end = Timestamp::from_ms(issuing.validity().not_after.timestamp().saturating_mul(1000));
        let mut all: Vec<Self> =
            index.revoked_cas.iter().map(|revoked| ca(&revoked.serial, revoked.not_after, true)).collect();
        all.push(ca(&index.issuing_serial, end, false));
        all.extend(index.certificates.iter().map(|entry| Self {
            role: entry.role.as_str(),
            id: entry.id.clone(),
            serial: entry.serial.clone(),
            not_after: entry.not_after,
            state: state(entry.is_revoked(), entry.not_after),
        }));
        Ok(all)
    }
}
