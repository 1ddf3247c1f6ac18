//! Two sites, and a third program, compute the same keys.

use std::collections::HashSet;

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use sha3::{Digest as _, Sha3_256};
use shake::{ExtendableOutput as _, Shake256, Update as _, XofReader as _};

use super::super::{output_bits, regenerate_with, words_per_pool};
use super::*;

/// Section 4 of the specification once more: bit by bit, from the definitions, sharing no code with the engine.
fn oracle(pools: &[OwnedPool], seeds: &BatchSeeds, key_bytes: usize, ids: &[KeyId]) -> Vec<Vec<u8>> {
    let hash = |prefix: &[u8], parts: &[&[u8]]| -> [u8; 32] {
        let mut hash = Sha3_256::new_with_prefix([b"dqkd-blast-1 ", prefix, &[0]].concat());
        for part in parts {
            sha3::Digest::update(&mut hash, part);
        }
        hash.finalize().into()
    };
    let output_bits = usize::try_from(output_bits(key_bytes, ids.len()).unwrap()).unwrap();
    let sampled = words_per_pool(output_bits as u64).unwrap() as usize;
    let mut x = Vec::new();
    for (index, pool) in (0_u8..).zip(pools) {
        let key = hash(b"sample", &[&[index], pool.id.as_bytes(), seeds.seed.expose()]);
        let mut stream = ChaCha20Rng::from_seed(key);
        let mut seen = HashSet::new();
        while seen.len() < sampled {
            let position = stream.next_u32() as usize & (pool.words.len() - 1);
            if seen.insert(position) {
                x.extend((0..64).map(|bit| pool.words[position] >> bit & 1 == 1));
            }
        }
    }
    let mut diagonal = vec![0; (x.len() + output_bits - 1).div_ceil(8)];
    ChaCha20Rng::from_seed(hash(b"toeplitz", &[seeds.seed.expose()])).fill_bytes(&mut diagonal);
    let t: Vec<bool> = diagonal.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
    let n = x.len();
    let mut y = vec![0_u8; output_bits / 8];
    for r in 0..output_bits {
        // y_r = XOR over c of t[r - c + n - 1] AND x[c]
        let column = t[r..r + n].iter().rev();
        let bit = column.zip(&x).fold(false, |sum, (t, x)| sum ^ (t & x));
        y[r / 8] |= u8::from(bit) << (r % 8);
    }
    let keys = ids.iter().zip(y.chunks(key_bytes)).map(|(id, part)| {
        let mut mask = Shake256::default();
        mask.update(&[b"dqkd-blast-1 mask\0".as_slice(), seeds.mask_seed.expose(), id.as_bytes()].concat());
        let mut key = vec![0; key_bytes];
        mask.finalize_xof().read(&mut key);
        key.iter_mut().zip(part).for_each(|(key, part)| *key ^= part);
        key
    });
    let mut all: Vec<Vec<u8>> = keys.collect();
    all.push(y.split_off(output_bits / 8 - 16));
    all
}

fn check(pool_count: u8, pool_log2: u32, key_bytes: usize, key_count: usize, seed: u8) {
    let mut owned = pools(pool_count, 1 << pool_log2);
    // Pools of a set may differ in size.
    owned[0].words.extend_from_within(..);
    let (pools, seeds, ids) = (borrowed(&owned), seeds(seed), key_ids(key_count));
    let expected = oracle(&owned, &seeds, key_bytes, &ids);
    for product in Product::available() {
        let batch = generate_with(product, &pools, &seeds, key_bytes, &ids).unwrap();
        let (keys, confirm) = expected.split_at(key_count);
        let own: Vec<_> = batch.keys.iter().map(|key| key.material.expose().to_vec()).collect();
        assert_eq!(own, keys, "{}", product.name());
        assert_eq!(batch.confirm.as_bytes().as_slice(), confirm[0]);
        for other in Product::available() {
            let (k, confirm) = (batch.words_per_pool, &batch.confirm);
            let again = regenerate_with(other, &pools, &seeds, key_bytes, &ids, k, confirm).unwrap();
            assert_eq!(bytes_of(&again), bytes_of(&batch.keys));
        }
    }
}

#[test]
fn sites_and_oracle_agree_at_the_edges_of_the_sizes() {
    check(2, 14, 1, 1, 1);
    check(8, 14, 1, 2, 2);
    check(3, 15, 33, 3, 3);
    check(2, 14, 7, 64, 4);
}

proptest! {
    // Each case is some ten million steps of the oracle.
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sites_and_oracle_agree_over_random_parameters(
        pool_count in 2_u8..=5,
        pool_log2 in 14_u32..=15,
        key_bytes in 1_usize..=40,
        key_count in 1_usize..=5,
        seed in any::<u8>(),
    ) {
        check(pool_count, pool_log2, key_bytes, key_count, seed);
    }
}
