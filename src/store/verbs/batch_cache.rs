//! Cache of immutable facts about batches.

use std::collections::HashMap;
use std::sync::Arc;

use kme::{BatchId, KmeId, Party, Recipient, SaeId, Timestamp};

use crate::store::sealing::DataKeyId;
use crate::store::types::{Entitlement, Role};

/// Most batches of one generation. The cache keeps two generations, so its memory is bounded and batches in
/// use stay.
const GENERATION: usize = 4096;

/// What the keys of a batch have in common.
#[derive(Debug)]
pub(crate) struct BatchFacts {
    pub(super) batch_id: BatchId,
    pub(super) source: KmeId,
    pub(super) master: SaeId,
    pub(super) recipients: Vec<Recipient>,
    pub(super) entitled: Vec<Entitlement>,
    pub(super) data_key_id: DataKeyId,
    pub(super) expires_at: Timestamp,
}

impl BatchFacts {
    /// Whether the path of a request names the other side of somebody who plays `role` for these keys.
    pub(super) fn path_fits(&self, role: Role, path: &Party) -> bool {
        match (role, path) {
            (Role::Slave, Party::Sae(sae)) => *sae == self.master,
            (Role::Slave, Party::Kme(kme)) => *kme == self.source,
            (Role::Master, path) => self.recipients.iter().any(|recipient| {
                recipient.party == *path || matches!(path, Party::Kme(kme) if *kme == recipient.kme)
            }),
        }
    }
}

/// Batches that one writer stored or read.
#[derive(Default)]
pub(crate) struct BatchCache {
    young: HashMap<BatchId, Arc<BatchFacts>>,
    old: HashMap<BatchId, Arc<BatchFacts>>,
}

impl BatchCache {
    /// Adds a batch that is committed.
    pub(crate) fn add(&mut self, facts: Arc<BatchFacts>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(facts.batch_id, facts);
    }

    pub(super) fn get(&mut self, id: BatchId) -> Option<Arc<BatchFacts>> {
        if let Some(facts) = self.young.get(&id) {
            return Some(Arc::clone(facts));
        }
        let facts = self.old.remove(&id)?;
        self.add(Arc::clone(&facts));
        Some(facts)
    }
}
