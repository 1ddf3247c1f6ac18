//! The keys of all KMEs: those that wait for their recipients, and counts of those used up.
//!
//! One process plays every KME, so that "both have the same key" (clause 4) needs no network.

use std::collections::HashMap;

use kme::{OsRandom, Random as _, RandomError};
use zeroize::Zeroizing;

use crate::answer::Delivered;
use crate::fault::{Fault, Faults};

/// Keys that a pair of SAEs can get from one start of the program.
pub(crate) const MAX_STORED: usize = 1500;

/// A key that not all recipients have fetched yet.
struct Issued {
    bytes: Zeroizing<Vec<u8>>,
    master: String,
    /// Every slave of the request.
    named: Vec<String>,
    /// Those that have not fetched it yet.
    waiting: Vec<String>,
}

/// Keys in memory.
pub(crate) struct Store {
    faults: Faults,
    issued: HashMap<String, Issued>,
    /// Keys used up, by master and slave.
    used: HashMap<(String, String), usize>,
    /// For [`Fault::SameKeyAgain`]: keys to be handed out once more, by master and slave.
    again: HashMap<(String, String), Vec<Delivered>>,
    next_number: u64,
}

/// Why no keys are made.
pub(crate) enum Failed {
    TooFew,
    Random(RandomError),
}

/// What a caller may have of one ID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The caller may have it.
    Waiting,
    /// It does not exist, is used up, or belongs to another master.
    Missing,
    /// The request that made it did not name the caller.
    Foreign,
}

impl Store {
    pub(crate) fn new(faults: Faults) -> Self {
        Self { faults, issued: HashMap::new(), used: HashMap::new(), again: HashMap::new(), next_number: 1 }
    }

    /// Keys that the pair can still get.
    pub(crate) fn stored(&self, master: &str, slave: &str) -> usize {
        let used = self.used.get(&(master.to_owned(), slave.to_owned())).copied().unwrap_or_default();
        MAX_STORED.saturating_sub(used)
    }

    /// Takes `number` keys for `master`, which each of `slaves` may fetch. The first slave is the one in the
    /// path.
    pub(crate) fn take(
        &mut self,
        master: &str,
        slaves: &[String],
        number: usize,
        bytes: usize,
    ) -> Result<Vec<Delivered>, Failed> {
        let pair = (master.to_owned(), slaves.first().cloned().unwrap_or_default());
        let stored = self.stored(&pair.0, &pair.1);
        let number = if self.faults.has(Fault::ShortWhenEmpty) { number.min(stored) } else { number };
        if number == 0 || stored < number {
            return Err(Failed::TooFew);
        }
        let mut keys: Vec<Delivered> = Vec::with_capacity(number);
        let mut again = Vec::new();
        for _ in 0..number {
            let key = if let Some(key) = self.reused(&pair, bytes) {
                key
            } else {
                let key = self.fresh(bytes)?;
                again.push(key.clone());
                key
            };
            let first = keys.first().filter(|_| self.faults.has(Fault::SameBytesAgain));
            keys.push(Delivered { bytes: first.map_or(key.bytes, |first| first.bytes.clone()), id: key.id });
        }
        // Within one container all keys differ.
        if self.faults.has(Fault::SameKeyAgain) {
            self.again.entry(pair.clone()).or_default().append(&mut again);
        }
        for key in &keys {
            let issued = Issued {
                bytes: key.bytes.clone(),
                master: master.to_owned(),
                named: slaves.to_owned(),
                waiting: slaves.to_owned(),
            };
            self.issued.insert(key.id.clone(), issued);
        }
        *self.used.entry(pair).or_default() += number;
        Ok(keys)
    }

    fn reused(&mut self, pair: &(String, String), bytes: usize) -> Option<Delivered> {
        let again = self.again.get_mut(pair)?;
        again.pop_if(|key| key.bytes.len() == bytes)
    }

    fn fresh(&mut self, bytes: usize) -> Result<Delivered, Failed> {
        let mut key = Zeroizing::new(vec![0; bytes]);
        OsRandom.fill(&mut key).map_err(Failed::Random)?;
        let id = if self.faults.has(Fault::IdNoUuid) {
            self.next_number.to_string()
        } else {
            uuid::Uuid::new_v4().to_string()
        };
        self.next_number += 1;
        Ok(Delivered { id, bytes: key })
    }

    /// Whether `caller` may have the key `id` of `master`.
    pub(crate) fn standing(&self, id: &str, caller: &str, master: &str) -> Standing {
        let Some(issued) = self.issued.get(id) else { return Standing::Missing };
        if !issued.named.iter().any(|sae| sae == caller) {
            return if self.faults.has(Fault::ForeignServed) { Standing::Waiting } else { Standing::Foreign };
        }
        let is_master = issued.master == master || self.faults.has(Fault::WrongMasterServed);
        let is_waiting = issued.waiting.iter().any(|sae| sae == caller);
        if is_master && is_waiting { Standing::Waiting } else { Standing::Missing }
    }

    /// The key `id`, without using it up.
    pub(crate) fn look(&self, id: &str) -> Option<Delivered> {
        let issued = self.issued.get(id)?;
        let mut bytes = issued.bytes.clone();
        if self.faults.has(Fault::OtherBytes)
            && let Some(first) = bytes.first_mut()
        {
            *first ^= 1;
        }
        Some(Delivered { id: id.to_owned(), bytes })
    }

    /// Notes that `caller` has the key `id`; after the last recipient the key is gone.
    pub(crate) fn consume(&mut self, id: &str, caller: &str) {
        if self.faults.has(Fault::ServedTwice) {
            return;
        }
        let Some(issued) = self.issued.get_mut(id) else { return };
        issued.waiting.retain(|sae| sae != caller);
        if issued.waiting.is_empty() || self.faults.has(Fault::SecondSlaveLate) {
            self.issued.remove(id);
        }
    }
}
