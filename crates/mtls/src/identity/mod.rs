//! Who is at the other end of a connection, according to its verified certificate.
//!
//! The kind in the SPIFFE URI decides: an SAE's certificate never passes as a KME's. Only this module makes
//! an [`AuthenticatedSae`] or [`AuthenticatedKme`], so a function that takes one cannot be called with a name
//! from a path or a body.

mod certificate;
mod spiffe;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use certificate::identify;

use kme::{KmeId, PoolServerId, SaeId};

/// An SAE that proved to hold the key of a certificate with its name. Clones share the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticatedSae(Arc<SaeId>);

impl AuthenticatedSae {
    fn new(id: SaeId) -> Self {
        Self(Arc::new(id))
    }

    /// Its ID.
    pub fn id(&self) -> &SaeId {
        &self.0
    }
}

/// A KME that proved to hold the key of a certificate with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticatedKme(KmeId);

impl AuthenticatedKme {
    /// Its ID.
    pub fn id(&self) -> &KmeId {
        &self.0
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An application.
    Sae(AuthenticatedSae),
    /// Another site.
    Kme(AuthenticatedKme),
    /// A random pool server.
    Pool(PoolServerId),
    /// A person who operates daemons.
    Operator(String),
}

/// The kinds of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An application.
    Sae,
    /// Another site.
    Kme,
    /// A random pool server.
    Pool,
    /// A person who operates daemons.
    Operator,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Sae, Self::Kme, Self::Pool, Self::Operator];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sae => "SAE",
            Self::Kme => "KME",
            Self::Pool => "pool server",
            Self::Operator => "operator",
        })
    }
}

impl Identity {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sae(_) => Kind::Sae,
            Self::Kme(_) => Kind::Kme,
            Self::Pool(_) => Kind::Pool,
            Self::Operator(_) => Kind::Operator,
        }
    }

    /// The ID, or the operator's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Sae(sae) => sae.0.as_str(),
            Self::Kme(kme) => kme.0.as_str(),
            Self::Pool(pool) => pool.as_str(),
            Self::Operator(name) => name,
        }
    }
}

/// Where the ID of an SAE is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaeIdentitySource {
    /// The URI `spiffe://TRUST_DOMAIN/sae/ID`.
    Spiffe,
    /// The only DNS name of the certificate.
    Dns,
    /// The common name of the subject.
    Cn,
    /// The SHA-256 of the whole certificate, as 64 lower-case hexadecimal digits.
    Fingerprint,
}

/// How a listener reads identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRules {
    /// The trust domain of the SPIFFE URIs.
    pub trust_domain: String,
    /// Where SAE IDs come from. The first source that gives one counts.
    pub sae_sources: Vec<SaeIdentitySource>,
}

/// Why a certificate gives no identity although its chain is good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate: the listener has no TLS.
    #[error("the connection has no client certificate")]
    NoCertificate,
    /// It cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// It has more than one URI (SPIFFE X.509-SVID, section 2).
    #[error("the certificate has more than one URI; a SPIFFE ID must be the only one")]
    SeveralUris,
    /// Its SPIFFE URI has another form.
    #[error(
        "the certificate's SPIFFE URI is not of the form spiffe://TRUST_DOMAIN/KIND/ID, where KIND is kme, sae, pool or \
         operator and ID has letters, digits and -._ only, without escapes: {0}"
    )]
    UnknownForm(String),
    /// It belongs to another trust domain.
    #[error("the certificate is of trust domain {0:?}")]
    ForeignTrustDomain(String),
    /// Its extended key usage does not allow what its holder does.
    #[error("the certificate of a {kind} needs the extended key usage {needs}")]
    WrongUsage {
        /// What the holder is.
        kind: &'static str,
        /// What the extension must have.
        needs: &'static str,
    },
    /// The name that the configured source gives cannot be an ID.
    #[error("the certificate's name cannot be an SAE ID: {0}")]
    NotAnId(kme::IdError),
    /// None of the configured sources gives an ID.
    #[error("the certificate has no name of a configured kind")]
    Nameless,
}

/// The identity behind a request. The router of a listener finds it in the extensions.
#[derive(Clone, Debug)]
pub struct ClientIdentity(Arc<Result<Identity, IdentityError>>);

impl ClientIdentity {
    /// From the result of [`identify`] for the client's certificate.
    pub fn new(identity: Result<Identity, IdentityError>) -> Self {
        Self(Arc::new(identity))
    }

    /// The client of a listener without TLS.
    pub fn none() -> Self {
        Self::new(Err(IdentityError::NoCertificate))
    }

    /// The SAE, if it is one.
    pub fn sae(&self) -> Option<&AuthenticatedSae> {
        match &*self.0 {
            Ok(Identity::Sae(sae)) => Some(sae),
            _ => None,
        }
    }

    /// The KME, if it is one.
    pub fn kme(&self) -> Option<&AuthenticatedKme> {
        match &*self.0 {
            Ok(Identity::Kme(kme)) => Some(kme),
            _ => None,
        }
    }

    /// The pool server, if it is one.
    pub fn pool(&self) -> Option<&PoolServerId> {
        match &*self.0 {
            Ok(Identity::Pool(pool)) => Some(pool),
            _ => None,
        }
    }

    /// The operator, if it is one.
    pub fn operator(&self) -> Option<&str> {
        match &*self.0 {
            Ok(Identity::Operator(name)) => Some(name),
            _ => None,
        }
    }

    /// Why the certificate gives no identity, if it gives none.
    pub fn refusal(&self) -> Option<&IdentityError> {
        self.0.as_ref().as_ref().err()
    }

    /// The name of the client for log lines.
    pub fn name(&self) -> Option<&str> {
        self.0.as_ref().as_ref().ok().map(Identity::name)
    }
}
