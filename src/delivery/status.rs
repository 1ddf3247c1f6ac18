//! Get status: ETSI GS QKD 014, clauses 5.2 and 6.1.

use kme::{KeyLimits, KmeId, Party, SaeId};

use super::{Caller, Delivery, DeliveryError};

/// What an SAE learns about sharing keys with a peer.
#[derive(Clone, Debug)]
pub struct Status {
    /// This KME.
    pub source: KmeId,
    /// The KME that serves the peer.
    pub target: KmeId,
    /// The caller.
    pub master: SaeId,
    /// The peer, as the path names it: an SAE, or a whole KME.
    pub slave: Party,
    /// Keys of the default size that are ready; at most `limits.max_stored_per_pair`.
    pub stored: u32,
    /// What the caller may ask for.
    pub limits: KeyLimits,
}

impl Delivery {
    /// Reports what the caller may ask for when it shares keys with the party in `path_id`.
    ///
    /// # Errors
    /// [`DeliveryError::Refused`] for a path that names nobody, or the caller.
    pub async fn status(&self, caller: &Caller, path_id: &str) -> Result<Status, DeliveryError> {
        let recipient = caller.recipient(path_id)?;
        let stored = self.source.ready(caller.sae(), recipient).await;
        Ok(Status {
            source: caller.directory().local().clone(),
            target: recipient.kme.clone(),
            master: caller.sae().clone(),
            slave: recipient.party.clone(),
            stored: stored.min(self.rules.limits.max_stored_per_pair),
            limits: self.rules.limits.clone(),
        })
    }
}
