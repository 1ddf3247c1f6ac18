//! All pairs of a reserve. Finding a known pair copies no name, and waits only while a new pair is added.

use std::collections::HashMap;
use std::sync::Arc;

use kme::{Recipient, SaeId};
use parking_lot::RwLock;

use super::pair::Pair;

type Recipients = HashMap<Recipient, Arc<Pair>>;

/// Pairs by their master and recipient.
#[derive(Default)]
pub(super) struct Pairs(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    of_master: HashMap<SaeId, Recipients>,
    is_closed: bool,
}

impl Pairs {
    /// The pair, added if it is new; `None` when there are `most` others, or after [`Self::close`].
    pub(super) fn find_or_add(
        &self,
        master: &SaeId,
        recipient: &Recipient,
        most: usize,
    ) -> Option<Arc<Pair>> {
        if let Some(pair) = self.with(master, recipient, Arc::clone) {
            return Some(pair);
        }
        let mut pairs = self.0.write();
        if let Some(pair) = pairs.find(master, recipient) {
            return Some(Arc::clone(pair));
        }
        if pairs.is_closed || pairs.of_master.values().map(HashMap::len).sum::<usize>() >= most {
            return None;
        }
        let pair = Pair::new(master.clone(), recipient.clone());
        let of_master = pairs.of_master.entry(master.clone()).or_default();
        of_master.insert(recipient.clone(), Arc::clone(&pair));
        Some(pair)
    }

    /// Calls `f` with the pair, if it is known. No pair can be added meanwhile.
    pub(super) fn with<T>(
        &self,
        master: &SaeId,
        recipient: &Recipient,
        f: impl FnOnce(&Arc<Pair>) -> T,
    ) -> Option<T> {
        self.0.read().find(master, recipient).map(f)
    }

    /// All pairs.
    pub(super) fn all(&self) -> Vec<Arc<Pair>> {
        self.0.read().of_master.values().flat_map(HashMap::values).cloned().collect()
    }

    /// Forgets a pair if nobody uses it. Returns whether it did.
    pub(super) fn remove_idle(&self, pair: &Pair) -> bool {
        let mut pairs = self.0.write();
        if !pair.is_idle() {
            return false;
        }
        if let Some(of_master) = pairs.of_master.get_mut(&pair.master) {
            of_master.remove(&pair.recipient);
            if of_master.is_empty() {
                pairs.of_master.remove(&pair.master);
            }
        }
        true
    }

    /// Removes and returns all pairs; no pair can be added afterwards.
    pub(super) fn close(&self) -> Vec<Arc<Pair>> {
        let mut pairs = self.0.write();
        pairs.is_closed = true;
        pairs.of_master.drain().flat_map(|(_, of_master)| of_master.into_values()).collect()
    }
}

impl Inner {
    fn find(&self, master: &SaeId, recipient: &Recipient) -> Option<&Arc<Pair>> {
        self.of_master.get(master)?.get(recipient)
    }
}
