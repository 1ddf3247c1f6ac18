//! Who is served, and what the ID in a path means to them.

use std::sync::Arc;

use super::{Delivery, DeliveryError, Refusal};
use crate::identity::AuthenticatedSae;
use crate::kme::{Directory, Party, Recipient, SaeId};

/// Which SAEs a site serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Every SAE certificate of the trust chain, except SAEs that the directory lists at another KME.
    Chain,
    /// Only SAEs that the directory lists at this KME.
    Listed,
}

/// An admitted SAE, with the directory as it was on admission. Made by [`Delivery::admit`] only.
#[derive(Clone, Debug)]
pub struct Caller {
    sae: SaeId,
    directory: Arc<Directory>,
    /// Whether a path may name a KME.
    kme_paths: bool,
}

impl Delivery {
    /// Admits an authenticated SAE for one request.
    ///
    /// # Errors
    /// [`DeliveryError::NotAdmitted`].
    pub fn admit(&self, sae: &AuthenticatedSae) -> Result<Caller, DeliveryError> {
        let directory = self.directory.load_full();
        let admitted = match directory.resolve(sae.id().as_str()) {
            Some(Recipient { party: Party::Sae(_), kme }) => kme == *directory.local(),
            // An SAE that calls itself like a KME could not be told from that KME in paths.
            Some(Recipient { party: Party::Kme(_), .. }) => false,
            None => self.rules.admission == Admission::Chain,
        };
        if admitted {
            Ok(Caller { sae: sae.id().clone(), directory, kme_paths: !self.rules.strict })
        } else {
            Err(DeliveryError::NotAdmitted)
        }
    }
}

impl Caller {
    /// The SAE that asks: the master of `enc_keys` and `status`, a party of the key in `dec_keys`.
    pub fn sae(&self) -> &SaeId {
        &self.sae
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whom the path of `enc_keys` or `status` names: a listed SAE first, then a KME.
    pub(super) fn recipient(&self, path_id: &str) -> Result<Recipient, Refusal> {
        self.other_party(path_id)?;
        self.resolve(path_id).ok_or(Refusal::UnknownPeer)
    }

    /// Whom the path of `dec_keys` names. Where every SAE of the chain is admitted, a master need not be listed
    /// here; no key is found under a name that nobody bears.
    pub(super) fn peer(&self, path_id: &str) -> Result<Party, Refusal> {
        let sae = self.other_party(path_id)?;
        Ok(self.resolve(path_id).map_or(Party::Sae(sae), |recipient| recipient.party))
    }

    fn resolve(&self, path_id: &str) -> Option<Recipient> {
        let named = self.directory.resolve(path_id);
        named.filter(|recipient| self.kme_paths || matches!(recipient.party, Party::Sae(_)))
    }

    fn other_party(&self, path_id: &str) -> Result<SaeId, Refusal> {
        let id: SaeId = path_id.parse().map_err(Refusal::InvalidPeer)?;
        if id == self.sae { Err(Refusal::PeerIsCaller) } else { Ok(id) }
    }
}
