//! Reads the identity from a verified certificate.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::{AuthenticatedSae, Identity, IdentityError, IdentityRules, SaeIdentitySource, spiffe};

/// The identity in the certificate `leaf_der`. The caller has verified its chain.
///
/// A SPIFFE URI alone decides; the other sources are for certificates without one. Where SPIFFE is read, a certificate
/// has at most one URI, of whatever scheme (SPIFFE X.509-SVID, section 2).
///
/// The extended key usage of a KME, a pool server or an operator must allow what they do. That of an SAE may be missing:
/// the verification of the chain has refused one that does not allow clients.
///
/// # Errors
/// [`IdentityError`].
pub fn identify(leaf_der: &[u8], rules: &IdentityRules) -> Result<Identity, IdentityError> {
    let (rest, certificate) = X509Certificate::from_der(leaf_der).map_err(|_| IdentityError::Malformed)?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed);
    }
    let names = Names::of(&certificate)?;
    let reads_spiffe = rules.sae_sources.contains(&SaeIdentitySource::Spiffe);
    let spiffe = names.uris.iter().find(|uri| spiffe::is_spiffe(uri));
    if names.uris.len() > 1 && (spiffe.is_some() || reads_spiffe) {
        return Err(IdentityError::SeveralUris);
    }
    if let Some(uri) = spiffe {
        let identity = spiffe::parse(uri, &rules.trust_domain)?;
        if matches!(identity, Identity::Sae(_)) && !reads_spiffe {
            return Err(IdentityError::Nameless);
        }
        check_usage(&certificate, &identity)?;
        return Ok(identity);
    }
    let name_by = |source: &SaeIdentitySource| match source {
        SaeIdentitySource::Spiffe => None,
        SaeIdentitySource::Dns => names.only_dns(),
        SaeIdentitySource::Cn => common_name(&certificate),
        SaeIdentitySource::Fingerprint => Some(hex::encode(digest(&SHA256, leaf_der))),
    };
    let name = rules.sae_sources.iter().find_map(name_by).ok_or(IdentityError::Nameless)?;
    let id = name.parse().map_err(IdentityError::NotAnId)?;
    Ok(Identity::Sae(AuthenticatedSae::new(id)))
}

/// Without the extension, a certificate is for nothing in particular: not enough to act for a site.
fn check_usage(certificate: &X509Certificate<'_>, identity: &Identity) -> Result<(), IdentityError> {
    // If the extension is there twice, that is an error.
    let extension = certificate.extended_key_usage().map_err(|_| IdentityError::Malformed)?;
    let (client, server) =
        extension.map_or((false, false), |usage| (usage.value.client_auth, usage.value.server_auth));
    let (is_right, kind, needs) = match identity {
        Identity::Sae(_) => return Ok(()),
        Identity::Kme(_) => (client && server, "KME", "serverAuth and clientAuth"),
        Identity::Pool(_) => (server, "pool server", "serverAuth"),
        Identity::Operator(_) => (client, "operator", "clientAuth"),
    };
    if is_right { Ok(()) } else { Err(IdentityError::WrongUsage { kind, needs }) }
}

struct Names<'a> {
    uris: Vec<&'a str>,
    dns: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(certificate: &'a X509Certificate<'_>) -> Result<Self, IdentityError> {
        let mut names = Self { uris: Vec::new(), dns: Vec::new() };
        // If the extension is there twice, that is an error.
        let extension = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => names.uris.push(uri),
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
