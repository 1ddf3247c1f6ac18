//! Which words of a pool a batch reads, and in which order.
//!
//! Owns steps 1 and 2 of `docs/blast-engine.md`, section 4. It reads the generator's raw 32-bit words, because the
//! range and shuffle functions of the `rand` crates may change their output between versions.

use kme::{PoolId, Seed};
use sha3::{Digest as _, Sha3_256};
use zeroize::Zeroizing;

use super::SUITE;
use super::stream::Stream;
use super::wiped::Wiped;

/// Key of one ChaCha20 stream: SHA3-256 of suite, label and parts.
pub(super) fn sub_seed(label: &str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut hash = Sha3_256::new_with_prefix(SUITE);
    hash.update(b" ");
    hash.update(label);
    hash.update([0]);
    for part in parts {
        hash.update(part);
    }
    let mut key = Zeroizing::new([0; 32]);
    hash.finalize_into((&mut *key).into());
    key
}

/// The positions drawn so far: a hash table with open addressing, at most a quarter full, wiped on drop.
///
/// One bit for each word would take 16 MiB for the largest pool. Positions are uniform, so their low bits are the
/// hash.
struct Seen {
    slots: Wiped<u32>,
    mask: usize,
}

impl Seen {
    /// Marks a free slot. Positions are below 2^27.
    const FREE: u32 = u32::MAX;

    fn with_room_for(count: usize) -> Self {
        let slots = (4 * count).next_power_of_two();
        Self { slots: Wiped::filled(Self::FREE, slots), mask: slots - 1 }
    }

    /// Whether `position` was new.
    fn insert(&mut self, position: u32) -> bool {
        let mut place = position as usize & self.mask;
        while let Some(slot) = self.slots.get_mut(place) {
            if *slot == Self::FREE {
                *slot = position;
                return true;
            }
            if *slot == position {
                return false;
            }
            place = (place + 1) & self.mask;
        }
        false
    }
}

/// `count` distinct positions below `pool_words` for the pool at place `index` of the batch.
///
/// `pool_words` is a power of two, at least `count` and at most 2^31. The batch was checked before.
pub(super) fn positions(
    seed: &Seed,
    index: u8,
    pool: &PoolId,
    pool_words: usize,
    count: usize,
) -> Wiped<u32> {
    debug_assert!(pool_words.is_power_of_two() && count <= pool_words);
    let mut words = Stream::of(&sub_seed("sample", &[&[index], pool.as_bytes(), seed.expose()]));
    let mask = u32::try_from(pool_words - 1).unwrap_or(u32::MAX);
    let mut seen = Seen::with_room_for(count);
    let mut chosen = Wiped::zeroed(count);
    for slot in chosen.iter_mut() {
        *slot = words.next_u32() & mask;
        while !seen.insert(*slot) {
            *slot = words.next_u32() & mask;
        }
    }
    chosen
}

/// The first `count` positions in a pool. For known-answer tests only: positions are secret while the pool lives.
pub fn first_positions(seed: &Seed, index: u8, pool: &PoolId, pool_words: usize, count: usize) -> Vec<u32> {
    positions(seed, index, pool, pool_words, count).to_vec()
}

/// The words of `pool` at `positions`, written to `sample` in the order drawn.
pub(super) fn gather(pool: &[u64], positions: &[u32], sample: &mut [u64]) {
    for (word, position) in sample.iter_mut().zip(positions) {
        // Every position is masked below the length of the pool.
        *word = pool.get(*position as usize).copied().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const POOL: PoolId = PoolId::from_bytes([7; 16]);

    fn seed(byte: u8) -> Seed {
        Seed::copy_of(&[byte; 32]).unwrap()
    }

    #[test]
    fn positions_are_distinct_and_inside_the_pool_even_when_it_is_drawn_empty() {
        for (words, count) in [(64, 64), (1 << 14, 1 << 12), (1 << 27, 394)] {
            let drawn = positions(&seed(1), 0, &POOL, words, count);
            assert_eq!(drawn.len(), count);
            assert!(drawn.iter().all(|position| (*position as usize) < words));
            assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), count);
        }
    }

    #[test]
    fn repeats_are_skipped_in_the_order_of_the_stream() {
        let mut words = Stream::of(&sub_seed("sample", &[&[3], POOL.as_bytes(), &[2; 32]]));
        let mut expected: Vec<u32> = Vec::new();
        while expected.len() < 200 {
            let position = words.next_u32() & 255;
            if !expected.contains(&position) {
                expected.push(position);
            }
        }
        assert_eq!(*positions(&seed(2), 3, &POOL, 256, 200), expected);
    }

    #[test]
    fn place_pool_and_seed_each_change_the_positions() {
        let base = positions(&seed(1), 0, &POOL, 1 << 14, 32);
        assert_ne!(*base, *positions(&seed(1), 1, &POOL, 1 << 14, 32));
        assert_ne!(*base, *positions(&seed(2), 0, &POOL, 1 << 14, 32));
        assert_ne!(*base, *positions(&seed(1), 0, &PoolId::from_bytes([8; 16]), 1 << 14, 32));
    }
}
