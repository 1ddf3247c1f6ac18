//! How much is stored for whom.
//!
//! The database is counted again and again, in small pieces. Until the next count has ended, what this
//! process stores is added to the last one, and nothing is subtracted. So the sums are never too small,
//! except for what other processes stored since the last count began. Asking costs no statement.

use std::collections::HashMap;
use std::ops::AddAssign;
use std::sync::Arc;

use kme::{KmeId, SaeId};
use parking_lot::Mutex;

/// An amount of what is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Keys. A batch of which no key is left counts as one.
    pub keys: u64,
    /// Bytes of these keys.
    pub bytes: u64,
    /// Batches that were voided before they arrived.
    pub tombstones: u64,
}

impl Stored {
    /// More than anybody stores.
    pub const UNBOUNDED: Self = Self { keys: u64::MAX, bytes: u64::MAX, tombstones: u64::MAX };

    fn plus(mut self, more: Self) -> Self {
        self += more;
        self
    }

    fn minus(self, less: Self) -> Self {
        Self {
            keys: self.keys.saturating_sub(less.keys),
            bytes: self.bytes.saturating_sub(less.bytes),
            tombstones: self.tombstones.saturating_sub(less.tombstones),
        }
    }

    /// The first part of `most` that `self` exceeds.
    fn excess(self, most: Self) -> Option<Excess> {
        if self.keys > most.keys {
            Some(Excess::Keys)
        } else if self.bytes > most.bytes {
            Some(Excess::Bytes)
        } else if self.tombstones > most.tombstones {
            Some(Excess::Tombstones)
        } else {
            None
        }
    }
}

impl AddAssign for Stored {
    fn add_assign(&mut self, more: Self) {
        self.keys = self.keys.saturating_add(more.keys);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.tombstones = self.tombstones.saturating_add(more.tombstones);
    }
}

/// What would be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Too many keys.
    Keys,
    /// Too many bytes of keys.
    Bytes,
    /// Too many tombstones.
    Tombstones,
}

/// For whom something is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The KME that made it.
    Source(KmeId),
    /// The master of the keys, an SAE of that source.
    Master(KmeId, SaeId),
}

/// The sums of one store.
#[derive(Debug, Default)]
pub struct Usage(Mutex<HashMap<Owner, Sums>>);

#[derive(Debug, Default)]
struct Sums {
    /// By the last count.
    counted: Stored,
    /// Stored here since the last count began, up to the beginning of the one that is under way.
    before: Stored,
    /// Stored here since the count that is under way began, or else since the last one began.
    since: Stored,
    /// About to be stored.
    in_work: Stored,
}

impl Sums {
    fn total(&self) -> Stored {
        self.counted.plus(self.before).plus(self.since).plus(self.in_work)
    }
}

impl Usage {
    /// What is stored for `owner`.
    pub fn of(&self, owner: &Owner) -> Stored {
        self.0.lock().get(owner).map(Sums::total).unwrap_or_default()
    }

    /// Reserves room for `amount` for each of the owners, if none then has more than the most it may have.
    ///
    /// # Errors
    /// The place of the owner that would have too much, and of what.
    pub fn reserve<const N: usize>(
        self: &Arc<Self>,
        owners: [(Owner, Stored); N],
        amount: Stored,
    ) -> Result<Reserved, (usize, Excess)> {
        let mut sums = self.0.lock();
        for (place, (owner, most)) in owners.iter().enumerate() {
            let total = sums.get(owner).map(Sums::total).unwrap_or_default();
            if let Some(excess) = total.plus(amount).excess(*most) {
                return Err((place, excess));
            }
        }
        let owners: Vec<Owner> = owners.into_iter().map(|(owner, _)| owner).collect();
        for owner in &owners {
            sums.entry(owner.clone()).or_default().in_work += amount;
        }
        drop(sums);
        Ok(Reserved { usage: Arc::clone(self), owners, amount, is_stored: false })
    }

    /// Begins a count. What is stored from now on is added to its result.
    pub(super) fn begin(&self) -> Count {
        for sums in self.0.lock().values_mut() {
            let since = std::mem::take(&mut sums.since);
            sums.before += since;
        }
        Count::default()
    }

    /// Puts a whole count in place of the last one.
    pub(super) fn end(&self, Count(mut counted): Count) {
        let mut all = self.0.lock();
        all.retain(|owner, sums| {
            sums.counted = counted.remove(owner).unwrap_or_default();
            sums.before = Stored::default();
            sums.total() != Stored::default()
        });
        for (owner, counted) in counted {
            all.insert(owner, Sums { counted, ..Sums::default() });
        }
    }
}

/// A count of the database that is under way.
#[derive(Debug, Default)]
pub(super) struct Count(HashMap<Owner, Stored>);

impl Count {
    pub(super) fn add(&mut self, owner: Owner, amount: Stored) {
        *self.0.entry(owner).or_default() += amount;
    }
}

/// Room for something that is about to be stored; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    usage: Arc<Usage>,
    owners: Vec<Owner>,
    amount: Stored,
    is_stored: bool,
}

impl Reserved {
    /// It is stored now.
    pub fn stored(mut self) {
        self.is_stored = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut all = self.usage.0.lock();
        for owner in &self.owners {
            // Entries with something in work are never removed.
            let Some(sums) = all.get_mut(owner) else { continue };
            sums.in_work = sums.in_work.minus(self.amount);
            if self.is_stored {
                sums.since += self.amount;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Owner {
        Owner::Master("site-a".parse().unwrap(), "alice".parse().unwrap())
    }

    fn keys(keys: u64) -> Stored {
        Stored { keys, ..Stored::default() }
    }

    fn reserve(usage: &Arc<Usage>, number: u64, most: u64) -> Result<Reserved, (usize, Excess)> {
        usage.reserve([(alice(), Stored { keys: most, ..Stored::UNBOUNDED })], keys(number))
    }

    #[test]
    fn what_is_in_work_and_what_was_stored_since_the_last_count_are_in_the_sum() {
        let usage = Arc::new(Usage::default());
        let mut count = usage.begin();
        count.add(alice(), keys(50));
        usage.end(count);
        let first = reserve(&usage, 30, 100).unwrap();
        assert_eq!(reserve(&usage, 30, 100).unwrap_err(), (0, Excess::Keys));
        drop(first);
        reserve(&usage, 30, 100).unwrap().stored();
        assert_eq!(usage.of(&alice()), keys(80));
        // Stored before this count began, so its result has them.
        let mut count = usage.begin();
        count.add(alice(), keys(80));
        reserve(&usage, 5, 100).unwrap().stored();
        assert_eq!(usage.of(&alice()), keys(85));
        usage.end(count);
        assert_eq!(usage.of(&alice()), keys(85), "what was stored during the count is added to it");
        // A count that fails changes nothing.
        drop(usage.begin());
        assert_eq!(usage.of(&alice()), keys(85));
        usage.end(usage.begin());
        assert_eq!(usage.of(&alice()), keys(0));
        assert!(usage.0.lock().is_empty());
    }

    #[test]
    fn nothing_is_reserved_unless_all_owners_have_room() {
        let usage = Arc::new(Usage::default());
        let site = Owner::Source("site-a".parse().unwrap());
        let both = || [(site.clone(), keys(10)), (alice(), keys(5))];
        assert_eq!(usage.reserve(both(), keys(6)).unwrap_err(), (1, Excess::Keys));
        assert_eq!(usage.of(&site), keys(0));
        let _reserved = usage.reserve(both(), keys(5)).unwrap();
        assert_eq!((usage.of(&site), usage.of(&alice())), (keys(5), keys(5)));
    }
}
