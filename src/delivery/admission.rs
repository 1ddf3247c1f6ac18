//! Which SAEs are served, and whom the ID in a path names.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;
use kme::{Admission, Directory, Party, Recipient, SaeId};
use mtls::identity::AuthenticatedSae;

use super::{Delivery, DeliveryError, Refusal};

/// An admitted SAE, with the directory as it was then. Only [`Delivery::admit`] makes one.
#[derive(Debug)]
pub struct Caller {
    sae: AuthenticatedSae,
    directory: Guard<Arc<Directory>>,
    /// Whether a path may name a KME.
    kme_paths: bool,
}

impl Delivery {
    /// Admits an authenticated SAE for one request.
    ///
    /// # Errors
    /// [`DeliveryError::NotAdmitted`].
    pub fn admit(&self, sae: &AuthenticatedSae) -> Result<Caller, DeliveryError> {
        let directory = self.directory.load();
        let admitted = match directory.resolve(sae.id().as_str()) {
            Some(Recipient { party: Party::Sae(_), kme }) => kme == directory.local(),
            // A path could not tell an SAE from a KME of the same name.
            Some(Recipient { party: Party::Kme(_), .. }) => false,
            None => self.rules.admission == Admission::Chain,
        };
        if admitted {
            Ok(Caller { sae: sae.clone(), directory, kme_paths: !self.rules.strict })
        } else {
            Err(DeliveryError::NotAdmitted)
        }
    }
}

impl Caller {
    /// The SAE that asks: the master in `enc_keys` and `status`, a party of the key in `dec_keys`.
    pub fn sae(&self) -> &SaeId {
        self.sae.id()
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whom the path of `enc_keys` or `status` names: a listed SAE, else a KME.
    pub(super) fn recipient(&self, path_id: &str) -> Result<&Recipient, Refusal> {
        self.check_other_party(path_id)?;
        self.resolve(path_id).ok_or(Refusal::UnknownPeer)
    }

    /// Whom the path of `dec_keys` names. A master need not be listed here: its own site may admit unlisted
    /// SAEs. An unknown name finds no key.
    pub(super) fn peer(&self, path_id: &str) -> Result<Cow<'_, Party>, Refusal> {
        self.check_other_party(path_id)?;
        match self.resolve(path_id) {
            Some(recipient) => Ok(Cow::Borrowed(&recipient.party)),
            None => path_id.parse().map(Party::Sae).map(Cow::Owned).map_err(Refusal::InvalidPeer),
        }
    }

    fn resolve(&self, path_id: &str) -> Option<&Recipient> {
        let named = self.directory.resolve(path_id);
        named.filter(|recipient| self.kme_paths || matches!(recipient.party, Party::Sae(_)))
    }

    fn check_other_party(&self, path_id: &str) -> Result<(), Refusal> {
        SaeId::check(path_id).map_err(Refusal::InvalidPeer)?;
        if path_id == self.sae().as_str() { Err(Refusal::PeerIsCaller) } else { Ok(()) }
    }
}
