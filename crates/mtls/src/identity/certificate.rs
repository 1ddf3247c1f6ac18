//! Reads the identity from a verified certificate.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::{AuthenticatedSae, Identity, IdentityError, IdentityRules, SaeIdentitySource, spiffe};

/// The identity in the certificate `leaf_der`. The caller has verified its chain.
///
/// A SPIFFE URI alone decides; the other sources are for certificates without one.
///
/// # Errors
/// [`IdentityError`].
pub fn identify(leaf_der: &[u8], rules: &IdentityRules) -> Result<Identity, IdentityError> {
    let (rest, certificate) = X509Certificate::from_der(leaf_der).map_err(|_| IdentityError::Malformed)?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed);
    }
    let names = Names::of(&certificate)?;
    match names.spiffe.as_slice() {
        [] => {}
        [uri] => {
            let identity = spiffe::parse(uri, &rules.trust_domain)?;
            let is_sae = matches!(identity, Identity::Sae(_));
            if is_sae && !rules.sae_sources.contains(&SaeIdentitySource::Spiffe) {
                return Err(IdentityError::Nameless);
            }
            return Ok(identity);
        }
        _ => return Err(IdentityError::SeveralUris),
    }
    let name_by = |source: &SaeIdentitySource| match source {
        SaeIdentitySource::Spiffe => None,
        SaeIdentitySource::Dns => names.only_dns(),
        SaeIdentitySource::Cn => common_name(&certificate),
        SaeIdentitySource::Fingerprint => Some(hex::encode(digest(&SHA256, leaf_der))),
    };
    let name = rules.sae_sources.iter().find_map(name_by).ok_or(IdentityError::Nameless)?;
    let id = name.parse().map_err(|_| IdentityError::Nameless)?;
    Ok(Identity::Sae(AuthenticatedSae::new(id)))
}

struct Names<'a> {
    spiffe: Vec<&'a str>,
    dns: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(certificate: &'a X509Certificate<'_>) -> Result<Self, IdentityError> {
        let mut names = Self { spiffe: Vec::new(), dns: Vec::new() };
        // If the extension is there twice, that is an error.
        let extension = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) if spiffe::is_spiffe(uri) => names.spiffe.push(uri),
                GeneralName::DNSName(dns) => names.dns.push(dns),
                GeneralName::Invalid(..) => return Err(IdentityError::Malformed),
                _ => {}
            }
        }
        Ok(names)
    }

    /// The DNS name, if there is exactly one.
    fn only_dns(&self) -> Option<String> {
        match self.dns.as_slice() {
            [name] => Some((*name).to_owned()),
            _ => None,
        }
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}
