//! Revocation lists: which CAs they cover, how old they are, and whether new ones may replace those in force.

use std::path::Path;
use std::sync::Arc;

use kme::Timestamp;
use rustls::DistinguishedName;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Name;

use super::error::TlsError;
use super::material::provider;

/// What a daemon knows of revocations, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Whether there are any lists.
    pub has_lists: bool,
    /// The list that is due first to be replaced: when, and the subject of its CA.
    pub due: Option<(Timestamp, String)>,
    /// The subjects of trusted CAs without a list. If there are lists, `crl_exempt` names these CAs.
    pub without_list: Vec<String>,
}

/// The lists of one file, and the CAs that need none.
#[derive(Default)]
pub(super) struct RevocationLists {
    /// At most one for each CA; webpki takes the first of an issuer's name.
    lists: Vec<List>,
    exempt: Vec<String>,
}

struct List {
    parsed: CertRevocationList<'static>,
    /// The subject of the CA as text.
    issuer: String,
    /// Tells CAs of one name apart.
    key_id: Option<Vec<u8>>,
    number: Option<BigUint>,
    this_update: i64,
    next_update: Option<Timestamp>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl List {
    fn parse(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let unusable = |error: &dyn std::fmt::Display| format!("has an unusable revocation list: {error}");
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| unusable(&error))?;
        let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| unusable(&error))?;
        let key_id = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        });
        let next_update = list.next_update().map(|time| moment(time.timestamp()));
        Ok(Self {
            parsed: parsed.into(),
            issuer: list.issuer().to_string(),
            key_id,
            number: list.crl_number().cloned(),
            this_update: list.last_update().timestamp(),
            next_update,
            signed: list.tbs_cert_list.as_ref().to_vec(),
            signature: list.signature_value.data.to_vec(),
        })
    }

    fn is_of_same_ca(&self, other: &Self) -> bool {
        self.parsed.issuer() == other.parsed.issuer() && self.key_id == other.key_id
    }

    fn is_older_than(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(own), Some(others)) if own != others => own < others,
            _ => self.this_update < other.this_update,
        }
    }

    fn described(&self) -> String {
        let of = moment(self.this_update);
        match &self.number {
            Some(number) => format!("number {number} of {of}"),
            None => format!("that of {of}"),
        }
    }
}

/// A CA that this daemon trusts, or that its own chain passes through.
pub(super) struct Ca<'a>(pub(super) &'a CertificateDer<'a>);

impl Ca<'_> {
    /// The whole subject as text, as `dqkd pki show` prints it.
    pub(super) fn name(&self) -> String {
        let name = |ca: X509Certificate<'_>| ca.subject().to_string();
        X509Certificate::from_der(self.0).map_or_else(|_| "(unreadable)".to_owned(), |(_, ca)| name(ca))
    }

    fn is_exempt(&self, exempt: &[String]) -> bool {
        X509Certificate::from_der(self.0).is_ok_and(|(_, ca)| is_named(ca.subject(), exempt))
    }
}

/// Whether one of `names` is the whole subject or its only common name.
fn is_named(subject: &X509Name<'_>, names: &[String]) -> bool {
    if names.is_empty() {
        return false;
    }
    let mut common_names = subject.iter_common_name().map(|name| name.as_str().unwrap_or_default());
    let common_name = common_names.next().filter(|name| !name.is_empty() && common_names.next().is_none());
    let whole = subject.to_string();
    names.iter().any(|name| *name == whole || Some(name.as_str()) == common_name)
}

impl RevocationLists {
    /// Without lists, nothing is checked.
    pub(super) fn none() -> Arc<Self> {
        Arc::default()
    }

    /// From the content of `file`. CAs that `exempt` names need no list.
    pub(super) fn parse(pem: &[u8], exempt: &[String], file: &Path) -> Result<Arc<Self>, TlsError> {
        let content = |what: String| TlsError::Content { file: file.to_owned(), what };
        let mut lists: Vec<List> = Vec::new();
        for der in CertificateRevocationListDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| content(format!("is not a PEM file: {error}")))?;
            let list = List::parse(&der).map_err(content)?;
            if !exempt.is_empty() && list.parsed.issuing_distribution_point().is_some() {
                return Err(content(format!(
                    "has a list of CA {} for a part of its certificates only (issuing distribution point): that does \
                     not go together with tls.crl_exempt",
                    list.issuer
                )));
            }
            // An old list beside its successor must not be the one that counts.
            match lists.iter_mut().find(|other| other.is_of_same_ca(&list)) {
                Some(other) if other.is_older_than(&list) => *other = list,
                Some(_) => {}
                None => lists.push(list),
            }
        }
        if lists.is_empty() {
            return Err(content("has no revocation list in PEM form".to_owned()));
        }
        Ok(Arc::new(Self { lists, exempt: exempt.to_vec() }))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter().map(|list| &list.parsed)
    }

    pub(super) fn has_exempt_cas(&self) -> bool {
        !self.lists.is_empty() && !self.exempt.is_empty()
    }

    /// Whether the CA with the subject `issuer` (DER, without the outer tag) has a list or needs none.
    pub(super) fn is_status_known(&self, issuer: &[u8]) -> bool {
        self.lists.is_empty() || self.list_of(issuer).is_some() || {
            let name = DistinguishedName::in_sequence(issuer);
            X509Name::from_der(name.as_ref()).is_ok_and(|(_, name)| is_named(&name, &self.exempt))
        }
    }

    /// The CA that issued one of `chain` and has no list, for a message. Strangers write these names.
    pub(super) fn first_uncovered<'a>(
        &self,
        mut chain: impl Iterator<Item = &'a CertificateDer<'a>>,
    ) -> String {
        let uncovered = |certificate: &CertificateDer<'_>| {
            let parsed = EndEntityCert::try_from(certificate).ok()?;
            if self.is_status_known(parsed.issuer()) {
                return None;
            }
            let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
            let name = certificate.issuer().to_string();
            Some(name.chars().filter(|c| kme::is_visible(*c)).take(200).collect())
        };
        chain.find_map(uncovered).unwrap_or_else(|| "of its chain".to_owned())
    }

    fn list_of(&self, issuer: &[u8]) -> Option<&List> {
        self.lists.iter().find(|list| list.parsed.issuer() == issuer)
    }

    /// Every CA must have a list that it signed, unless it is exempt. `Err` says what is wrong, after the file's name.
    pub(super) fn check_cover(&self, cas: &[Ca<'_>]) -> Result<(), String> {
        if self.lists.is_empty() {
            return Ok(());
        }
        for ca in cas {
            // An anchor of version 1 cannot be parsed, and has no way to say that it signs lists.
            let Ok(certificate) = EndEntityCert::try_from(ca.0) else {
                if ca.is_exempt(&self.exempt) {
                    continue;
                }
                return Err(not_covered(&ca.name()));
            };
            match self.list_of(certificate.subject()) {
                Some(list) => {
                    let algorithms = provider().signature_verification_algorithms.all;
                    let is_good = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
                        certificate.verify_signature(*algorithm, &list.signed, &list.signature).is_ok()
                    };
                    if !algorithms.iter().any(is_good) {
                        return Err(format!("has a list of CA {} that this CA did not sign", ca.name()));
                    }
                }
                None if ca.is_exempt(&self.exempt) => {}
                None => return Err(not_covered(&ca.name())),
            }
        }
        Ok(())
    }

    /// Whoever puts an old list back must not undo a revocation. `Err` says which list is old, after the file's name.
    pub(super) fn check_newer(&self, in_force: &Self) -> Result<(), String> {
        for new in &self.lists {
            let old = in_force.lists.iter().find(|old| old.is_of_same_ca(new));
            if let Some(old) = old.filter(|old| new.is_older_than(old)) {
                return Err(format!(
                    "has an old list of CA {}: {}, but {} is in force",
                    new.issuer,
                    new.described(),
                    old.described()
                ));
            }
        }
        Ok(())
    }

    pub(super) fn describe(&self, cas: &[Ca<'_>]) -> Revocations {
        let due = self.lists.iter().filter_map(|list| Some((list.next_update?, list.issuer.clone()))).min();
        let is_without = |ca: &&Ca<'_>| {
            let certificate = EndEntityCert::try_from(ca.0);
            certificate.map_or(true, |certificate| self.list_of(certificate.subject()).is_none())
        };
        let mut without_list: Vec<String> = cas.iter().filter(is_without).map(Ca::name).collect();
        without_list.sort();
        without_list.dedup();
        Revocations { has_lists: !self.lists.is_empty(), due, without_list }
    }
}

fn not_covered(ca: &str) -> String {
    format!("does not cover CA {ca}: add its list, or name the CA in tls.crl_exempt")
}

fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_ms(seconds.saturating_mul(1000))
}
