//! Fair shares of something that there is only so much of: places, connections, memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A fixed number of units, shared by holders with names.
///
/// A holder may take units as long as it then has at most one more than are left. So one holder alone gets
/// half of them, two greedy ones a third each, and some are left for whoever comes next (this is the dynamic
/// threshold of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).
///
/// # Example
/// ```
/// use kme::FairShares;
///
/// let places = FairShares::new(4);
/// let (alice, bob) = (places.holder(&"alice"), places.holder(&"bob"));
/// let _first = alice.take(1).unwrap();
/// let _second = alice.take(1).unwrap();
/// assert!(alice.take(1).is_none(), "she has two, and only two are free");
/// assert!(bob.take(1).is_some());
/// ```
#[derive(Debug)]
pub struct FairShares<K> {
    total: Arc<Total>,
    holders: Mutex<HashMap<K, Weak<Own>>>,
}

#[derive(Debug)]
struct Total {
    units: usize,
    taken: AtomicUsize,
}

/// What one name has.
#[derive(Debug)]
struct Own {
    total: Arc<Total>,
    taken: AtomicUsize,
}

impl<K: Clone + Eq + Hash> FairShares<K> {
    /// `units` to share, at least one.
    pub fn new(units: usize) -> Self {
        let total = Total { units: units.max(1), taken: AtomicUsize::new(0) };
        Self { total: Arc::new(total), holders: Mutex::default() }
    }

    /// The holder of that name. All handles of one name count together.
    pub fn holder(&self, name: &K) -> Holder {
        let mut holders = self.holders.lock();
        let known = holders.get(name).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            // Names that nobody uses any more go when a new one comes.
            holders.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Own { total: Arc::clone(&self.total), taken: AtomicUsize::new(0) });
            holders.insert(name.clone(), Arc::downgrade(&own));
            own
        });
        Holder(own)
    }

    /// Units that are taken.
    pub fn taken(&self) -> usize {
        self.total.taken.load(Ordering::Relaxed)
    }
}

/// Takes units for one name. Clones count together.
#[derive(Clone, Debug)]
pub struct Holder(Arc<Own>);

impl Holder {
    /// Takes `units`, which come back when [`Taken`] is dropped. `None` if that is more than a fair share now.
    pub fn take(&self, units: usize) -> Option<Taken> {
        self.take_up_to(units, usize::MAX)
    }

    /// As [`Self::take`], but the name never has more than `own_max`.
    pub fn take_up_to(&self, units: usize, own_max: usize) -> Option<Taken> {
        // Counted first, and given back if it was too much. So two that compete for the last unit may both
        // go without, but never both get it.
        let Own { total, taken: own } = &*self.0;
        let taken = total.taken.fetch_add(units, Ordering::Relaxed).saturating_add(units);
        let own = own.fetch_add(units, Ordering::Relaxed).saturating_add(units);
        let counted = Taken { own: Arc::clone(&self.0), units };
        let is_left = taken <= total.units;
        let is_fair = own <= total.units.saturating_sub(taken).saturating_add(1);
        (is_left && is_fair && own <= own_max).then_some(counted)
    }

    /// Units that the name has.
    pub fn has(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// Units of one name, given back when dropped.
#[derive(Debug)]
pub struct Taken {
    own: Arc<Own>,
    units: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.own.taken.fetch_sub(self.units, Ordering::Relaxed);
        self.own.total.taken.fetch_sub(self.units, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(holder: &Holder) -> Vec<Taken> {
        std::iter::from_fn(|| holder.take(1)).collect()
    }

    #[test]
    fn one_greedy_holder_gets_half_and_leaves_a_share_for_everyone_who_comes() {
        let shares = FairShares::new(64);
        let greedy = take_all(&shares.holder(&"mallory"));
        assert_eq!(greedy.len(), 32);
        let mut others = Vec::new();
        for name in ["alice", "bob", "carol", "dave"] {
            let taken = take_all(&shares.holder(&name));
            assert!(!taken.is_empty(), "{name} got nothing");
            others.push(taken);
        }
        assert!(shares.taken() < 64);
    }

    #[test]
    fn the_only_unit_can_be_taken() {
        let shares = FairShares::new(1);
        let taken = shares.holder(&"alice").take(1);
        assert!(taken.is_some());
        assert!(shares.holder(&"bob").take(1).is_none());
        drop(taken);
        assert!(shares.holder(&"bob").take(1).is_some());
    }

    #[test]
    fn units_come_back_and_handles_of_one_name_count_together() {
        let shares = FairShares::new(100);
        let (one, two) = (shares.holder(&"alice"), shares.holder(&"alice"));
        let taken = one.take(30);
        assert!(taken.is_some());
        assert_eq!(two.has(), 30);
        assert!(two.take(30).is_none(), "she would have 60, and 40 would be left");
        assert_eq!(shares.taken(), 30, "a refusal takes nothing");
        drop(taken);
        assert_eq!((one.has(), shares.taken()), (0, 0));
        assert!(two.take(100).is_none());
        assert!(two.take(50).is_some());
    }

    #[test]
    fn a_limit_of_its_own_is_kept() {
        let shares = FairShares::new(100);
        let alice = shares.holder(&"alice");
        let _two = alice.take_up_to(2, 2).unwrap();
        assert!(alice.take_up_to(1, 2).is_none());
        assert!(alice.take_up_to(1, 3).is_some());
    }

    #[test]
    fn names_that_nobody_uses_are_forgotten() {
        let shares = FairShares::new(10);
        for number in 0..100 {
            drop(shares.holder(&number));
        }
        assert!(shares.holders.lock().len() <= 2);
    }
}
