//! SPIFFE IDs: `spiffe://TRUST_DOMAIN/KIND/ID`.

use percent_encoding::percent_decode_str;

use super::{AuthenticatedKme, AuthenticatedSae, Identity, IdentityError};

const SCHEME: &str = "spiffe://";

/// Whether `uri` claims to be a SPIFFE ID. Schemes are case-insensitive.
pub(super) fn is_spiffe(uri: &str) -> bool {
    uri.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// The identity that `uri` names in `trust_domain`.
pub(super) fn parse(uri: &str, trust_domain: &str) -> Result<Identity, IdentityError> {
    let unknown = || IdentityError::UnknownForm(printable(uri));
    let rest = uri.get(SCHEME.len()..).filter(|_| is_spiffe(uri)).ok_or_else(unknown)?;
    let (domain, path) = rest.split_once('/').ok_or_else(unknown)?;
    if !domain.eq_ignore_ascii_case(trust_domain) {
        return Err(IdentityError::ForeignTrustDomain(printable(domain)));
    }
    let (kind, id) = path.split_once('/').ok_or_else(unknown)?;
    if id.is_empty() || id.contains(['/', '?', '#']) {
        return Err(unknown());
    }
    let id = percent_decode_str(id).decode_utf8().map_err(|_| unknown())?;
    match kind {
        "sae" => id.parse().map(AuthenticatedSae::new).map(Identity::Sae).map_err(|_| unknown()),
        "kme" => id.parse().map(AuthenticatedKme).map(Identity::Kme).map_err(|_| unknown()),
        "pool" => id.parse().map(Identity::Pool).map_err(|_| unknown()),
        "operator" => {
            // An operator's name follows the rules of the other IDs, although it has no type.
            id.parse::<kme::SaeId>().map_err(|_| unknown())?;
            Ok(Identity::Operator(id.into_owned()))
        }
        _ => Err(unknown()),
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
