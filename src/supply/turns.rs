//! Turns of masters, so that the orders of one SAE do not keep those of another from the engine.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use kme::SaeId;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Batches of one master in work at once; more wait. Half of the calls to a peer that may be under way, and
/// little for the engine: so the orders of one SAE delay those of another by these few at most.
const BATCHES_PER_MASTER: usize = 32;
/// A batch of so many bits counts as one, a longer one as several: the engine's work grows with the length and
/// with the sample, which is longer for a longer batch.
const BITS_OF_ONE: u64 = 1 << 14;
/// What the largest batch counts as.
const TURNS_MAX: u32 = 8;

/// Turns of masters: each may have a few batches in work.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<SaeId, Weak<Semaphore>>>);

/// How many turns a batch of `bits` takes.
pub(super) fn turns_of(bits: u64) -> u32 {
    u32::try_from(bits / BITS_OF_ONE).unwrap_or(TURNS_MAX).clamp(1, TURNS_MAX)
}

impl Turns {
    /// The turns of `master`. A batch in work holds some of them.
    pub(super) fn of(&self, master: &SaeId) -> Arc<Semaphore> {
        let mut turns = self.0.lock();
        if let Some(known) = turns.get(master).and_then(Weak::upgrade) {
            return known;
        }
        // Masters without orders go when a new one comes.
        turns.retain(|_, of_one| of_one.strong_count() > 0);
        let new = Arc::new(Semaphore::new(BATCHES_PER_MASTER));
        turns.insert(master.clone(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_largest_batches_a_master_has_few_in_work() {
        let ordinary = blast::output_bits(32, blast::MAX_KEYS_PER_BATCH).unwrap();
        let largest = blast::output_bits(16_368, 1).unwrap();
        assert_eq!(turns_of(ordinary), 1);
        assert_eq!(turns_of(largest), 8);
    }

    #[test]
    fn each_master_has_turns_of_its_own_and_unused_ones_are_forgotten() {
        let turns = Turns::default();
        let (alice, dave): (SaeId, SaeId) = ("alice".parse().unwrap(), "dave".parse().unwrap());
        let of_alice = turns.of(&alice);
        let all: Vec<_> = std::iter::from_fn(|| turns.of(&alice).try_acquire_owned().ok()).collect();
        assert_eq!(all.len(), BATCHES_PER_MASTER);
        assert_eq!(turns.of(&dave).available_permits(), BATCHES_PER_MASTER);
        drop(all);
        assert_eq!(of_alice.available_permits(), BATCHES_PER_MASTER);
        drop(of_alice);
        turns.of(&dave);
        assert!(!turns.0.lock().contains_key(&alice));
    }
}
