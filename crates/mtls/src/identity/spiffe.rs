//! SPIFFE IDs: `spiffe://TRUST_DOMAIN/KIND/ID`, in exactly one spelling.
//!
//! The standard allows no escapes and only lower-case schemes and trust domains. Read strictly, two different URIs never
//! name the same holder.

use kme::is_spiffe_segment;

use super::{AuthenticatedKme, AuthenticatedSae, Identity, IdentityError};

const SCHEME: &str = "spiffe://";

/// Whether `uri` claims to be a SPIFFE ID, in whatever spelling. Then it decides, or the certificate names nobody.
pub(super) fn is_spiffe(uri: &str) -> bool {
    uri.get(.."spiffe:".len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// The identity that `uri` names in `trust_domain`.
pub(super) fn parse(uri: &str, trust_domain: &str) -> Result<Identity, IdentityError> {
    let unknown = || IdentityError::UnknownForm(printable(uri));
    let (domain, path) =
        uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
    if domain != trust_domain {
        return Err(IdentityError::ForeignTrustDomain(printable(domain)));
    }
    let (kind, id) = path.split_once('/').ok_or_else(unknown)?;
    if !is_spiffe_segment(id) {
        return Err(unknown());
    }
    match kind {
        "sae" => id.parse().map(AuthenticatedSae::new).map(Identity::Sae).map_err(|_| unknown()),
        "kme" => id.parse().map(AuthenticatedKme).map(Identity::Kme).map_err(|_| unknown()),
        "pool" => id.parse().map(Identity::Pool).map_err(|_| unknown()),
        "operator" => {
            // An operator's name follows the rules of the other IDs, although it has no type.
            id.parse::<kme::SaeId>().map_err(|_| unknown())?;
            Ok(Identity::Operator(id.to_owned()))
        }
        _ => Err(unknown()),
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| kme::is_visible(*c)).take(200).collect()
}
