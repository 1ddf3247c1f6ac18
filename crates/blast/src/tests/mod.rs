//! The promises of `docs/blast-engine.md`, section 6, that need whole batches.

mod agreement;
mod algebra;
mod rank;
mod refusals;

use kme::{Key, KeyId, PoolId, Seed};

use super::{BatchSeeds, Generated, Product, SourcePool, generate_with};

/// A pool with its words, filled by a small generator from `seed`.
struct OwnedPool {
    id: PoolId,
    words: Vec<u64>,
}

impl OwnedPool {
    fn new(seed: u8, words: usize) -> Self {
        let mut state = u64::from(seed) << 32 | 0x9e37_79b9;
        let next = |_| {
            // SplitMix64: test data only.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        };
        Self { id: PoolId::from_bytes([seed; 16]), words: (0..words).map(next).collect() }
    }
}

fn pools(count: u8, words: usize) -> Vec<OwnedPool> {
    (0..count).map(|index| OwnedPool::new(index + 1, words)).collect()
}

fn borrowed(pools: &[OwnedPool]) -> Vec<SourcePool<'_>> {
    pools.iter().map(|pool| SourcePool { id: pool.id, words: &pool.words }).collect()
}

fn seeds(byte: u8) -> BatchSeeds {
    BatchSeeds {
        seed: Seed::copy_of(&[byte; 32]).unwrap(),
        mask_seed: Seed::copy_of(&[byte ^ 0xff; 32]).unwrap(),
    }
}

fn key_ids(count: usize) -> Vec<KeyId> {
    (0..count).map(|index| KeyId::from_bytes([u8::try_from(index).unwrap(); 16])).collect()
}

fn bytes_of(keys: &[Key]) -> Vec<(KeyId, Vec<u8>)> {
    keys.iter().map(|key| (key.id, key.material.expose().to_vec())).collect()
}

/// A batch of two keys of 32 bytes on the fastest product.
fn two_keys(pools: &[SourcePool<'_>]) -> Generated {
    generate_with(Product::detect(), pools, &seeds(9), 32, &key_ids(2)).unwrap()
}
