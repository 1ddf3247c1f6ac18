//! Get key with key IDs: ETSI GS QKD 014, clauses 5.4 and 6.4.

use std::collections::HashSet;

use kme::{Key, KeyId};

use super::{Caller, Delivery, DeliveryError, Refusal};
use crate::store::{Retrieval, RetrieveError};

impl Delivery {
    /// Returns the keys with `key_ids`, in that order, that the caller shares with the party in `path_id`.
    /// All or none, after the commit that uses up the caller's retrievals.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub async fn get_key_with_ids(
        &self,
        caller: &Caller,
        path_id: &str,
        key_ids: &[impl AsRef<str>],
    ) -> Result<Vec<Key>, DeliveryError> {
        let path = caller.peer(path_id)?;
        let key_ids = self.distinct_ids(key_ids)?;
        let asked = Retrieval {
            caller: caller.sae(),
            local: caller.directory().local(),
            path: path.as_ref(),
            key_ids: &key_ids,
            mode: self.rules.retrieval.mode,
            replay_window: self.rules.retrieval.replay_window,
            patience: self.rules.retrieval_patience,
        };
        self.store.retrieve(&asked).await.map_err(|error| match error {
            RetrieveError::NotEntitled => DeliveryError::NotEntitled,
            RetrieveError::NotFound => DeliveryError::KeysNotFound,
            RetrieveError::Store(error) => DeliveryError::Store(error),
        })
    }

    fn distinct_ids(&self, texts: &[impl AsRef<str>]) -> Result<Vec<KeyId>, Refusal> {
        let max = self.rules.limits.max_per_request;
        if texts.is_empty() {
            return Err(Refusal::NoKeyIds);
        }
        if u32::try_from(texts.len()).map_or(true, |count| count > max) {
            return Err(Refusal::TooManyKeyIds { max });
        }
        let mut seen = HashSet::with_capacity(texts.len());
        texts
            .iter()
            .map(|text| {
                let id: KeyId = text.as_ref().parse().map_err(|_| Refusal::KeyIdNotUuid)?;
                if seen.insert(id) { Ok(id) } else { Err(Refusal::DuplicateKeyId) }
            })
            .collect()
    }
}
