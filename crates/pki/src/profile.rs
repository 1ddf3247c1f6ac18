//! What certificates look like, by role.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use kme::{SaeId, Timestamp, is_spiffe_segment};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::PkiError;

/// Certificates begin in the past, because clocks of new machines may be behind.
const BACKDATED: Duration = Duration::from_hours(1);
/// Longest common name (RFC 5280, upper bound `ub-common-name`), in characters.
const CN_MAX_CHARS: usize = 64;

/// What the holder of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A site's daemon: server and client.
    Kme,
    /// An application: client.
    Sae,
    /// A random pool server: server.
    Pool,
    /// A person who operates daemons: client.
    Operator,
}

impl Role {
    /// Its name in SPIFFE URIs and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kme => "kme",
            Self::Sae => "sae",
            Self::Pool => "pool",
            Self::Operator => "operator",
        }
    }

    fn usages(self) -> Vec<ExtendedKeyUsagePurpose> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        match self {
            Self::Kme => vec![ServerAuth, ClientAuth],
            Self::Pool => vec![ServerAuth],
            Self::Sae | Self::Operator => vec![ClientAuth],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Kme, Self::Sae, Self::Pool, Self::Operator]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a role; roles are kme, sae, pool and operator"))
    }
}

/// From when and how long something is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) now: Timestamp,
    pub(super) days: u32,
}

impl Life {
    pub(super) fn not_before(self) -> OffsetDateTime {
        moment(self.now.minus(BACKDATED))
    }

    pub(super) fn not_after(self) -> OffsetDateTime {
        moment(self.end())
    }

    pub(super) fn end(self) -> Timestamp {
        self.now.plus(Duration::from_hours(24 * u64::from(self.days)))
    }
}

pub(super) fn moment(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(timestamp.as_ms().div_euclid(1000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A CA that may issue to a chain of at most `below` other CAs.
pub(super) fn ca(common_name: &str, below: u8, life: Life, serial: &[u8]) -> CertificateParams {
    let mut params = base(common_name, life, serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Whom a certificate names, and the addresses of its servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder<'a> {
    pub(super) role: Role,
    pub(super) id: &'a str,
    /// Whether the common name alone is the ID. Then there is no SPIFFE URI.
    pub(super) cn_only: bool,
    pub(super) dns: &'a [String],
    pub(super) ip: &'a [IpAddr],
}

/// A certificate for `holder`.
pub(super) fn leaf(
    holder: Holder<'_>,
    trust_domain: &str,
    life: Life,
    serial: &[u8],
) -> Result<CertificateParams, PkiError> {
    let Holder { role, id, cn_only, dns, ip } = holder;
    // All IDs follow the same rules, whatever they name.
    id.parse::<SaeId>().map_err(|error| PkiError::Refused(format!("{id:?} is not an ID: {error}")))?;
    check_place(role, id, cn_only)?;
    let ia5 = |text: &str| {
        Ia5String::try_from(text).map_err(|_| PkiError::Refused(format!("{text:?} is not a host name")))
    };
    let common_name: String = id.chars().take(CN_MAX_CHARS).collect();
    let mut params = base(&common_name, life, serial);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = role.usages();
    if !cn_only {
        params.subject_alt_names.push(SanType::URI(ia5(&format!("spiffe://{trust_domain}/{role}/{id}"))?));
    }
    for name in dns {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.*_".contains(&b)) {
            return Err(PkiError::Refused(format!("{name:?} is not a DNS name")));
        }
        params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
    }
    params.subject_alt_names.extend(ip.iter().copied().map(SanType::IpAddress));
    Ok(params)
}

/// Whether the ID fits where it shall stand.
fn check_place(role: Role, id: &str, cn_only: bool) -> Result<(), PkiError> {
    let refused = |text: String| Err(PkiError::Refused(text));
    if !cn_only {
        if is_spiffe_segment(id) {
            return Ok(());
        }
        let allowed = "an ID in a SPIFFE URI has letters, digits, dots, hyphens and underscores only";
        return refused(match role {
            Role::Sae => format!(
                "{id:?}: {allowed}. For an SAE, --cn makes a certificate whose common name is the ID; its KME then needs \
                 `sae_identity = [\"spiffe\", \"cn\"]`"
            ),
            _ => format!("{id:?}: {allowed}"),
        });
    }
    if role != Role::Sae {
        return refused(format!("--cn is for SAEs only; a {role} needs its SPIFFE URI"));
    }
    if id.chars().count() > CN_MAX_CHARS {
        return refused(format!(
            "{id:?} is too long: a common name has at most {CN_MAX_CHARS} characters. \
             `sae_identity = [\"fingerprint\"]` takes IDs from the certificate itself"
        ));
    }
    Ok(())
}

fn base(common_name: &str, life: Life, serial: &[u8]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = life.not_before();
    params.not_after = life.not_after();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.use_authority_key_identifier_extension = true;
    params
}
