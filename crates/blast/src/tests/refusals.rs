//! What the engine refuses.

use super::super::{Confirm, EngineError, generate, regenerate, words_per_pool};
use super::*;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, EngineError>, expected: EngineError) {
    assert_eq!(result.unwrap_err(), expected);
}

#[test]
fn a_sample_below_the_rule_is_refused_by_the_recipient() {
    let owned = pools(3, 1 << 14);
    let pools = borrowed(&owned);
    let batch = two_keys(&pools);
    let least = words_per_pool(640).unwrap();
    assert_eq!(batch.words_per_pool, least);
    for given in [0, 1, 131, least - 10] {
        let result = regenerate(&pools, &seeds(9), 32, &key_ids(2), given, &batch.confirm);
        let expected = EngineError::SampleTooSmall { given, least, output_bits: 640 };
        refused(result, expected);
    }
}

#[test]
fn a_sample_of_more_than_a_quarter_of_a_pool_is_refused() {
    let mut owned = pools(2, 1 << 15);
    owned[1].words.truncate(1 << 14);
    let pools = borrowed(&owned);
    let confirm = Confirm::from_bytes([0; 16]);
    for given in [4097, 1 << 20, u32::MAX] {
        let result = regenerate(&pools, &seeds(9), 32, &key_ids(2), given, &confirm);
        refused(result, EngineError::SampleTooLarge { given, most: 4096 });
    }
    // The longest output needs 5060 words: more than a quarter of the smallest pool.
    let result = generate(&pools, &seeds(9), 16_368, &key_ids(1));
    refused(result, EngineError::SampleTooLarge { given: 5060, most: 4096 });
}

#[test]
fn the_sample_is_bounded_for_large_pools_too() {
    let owned = pools(2, 1 << 16);
    let confirm = Confirm::from_bytes([0; 16]);
    let result = regenerate(&borrowed(&owned), &seeds(9), 32, &key_ids(2), 8193, &confirm);
    refused(result, EngineError::SampleTooLarge { given: 8193, most: 8192 });
}

#[test]
fn a_wrong_confirm_is_refused_whichever_bit_differs() {
    let owned = pools(3, 1 << 14);
    let pools = borrowed(&owned);
    let batch = two_keys(&pools);
    for bit in 0..128 {
        let mut bytes = *batch.confirm.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let confirm = Confirm::from_bytes(bytes);
        if bit % 29 == 0 {
            let result = regenerate(&pools, &seeds(9), 32, &key_ids(2), batch.words_per_pool, &confirm);
            refused(result, EngineError::ConfirmMismatch);
        }
        assert_ne!(confirm, batch.confirm);
    }
}

#[test]
fn a_corrupted_byte_in_a_sampled_word_of_any_pool_is_refused() {
    let mut owned = pools(3, 1 << 14);
    let batch = two_keys(&borrowed(&owned));
    let (seeds, ids, k) = (seeds(9), key_ids(2), batch.words_per_pool);
    for (index, place) in (0..3).zip(0_u8..) {
        let id = owned[index].id;
        let drawn = super::super::first_positions(&seeds.seed, place, &id, 1 << 14, k as usize);
        for position in [drawn[0], drawn[k as usize - 1]] {
            owned[index].words[position as usize] ^= 0x40 << (8 * index);
            let result = regenerate(&borrowed(&owned), &seeds, 32, &ids, k, &batch.confirm);
            refused(result, EngineError::ConfirmMismatch);
            owned[index].words[position as usize] ^= 0x40 << (8 * index);
        }
    }
    assert!(regenerate(&borrowed(&owned), &seeds, 32, &ids, k, &batch.confirm).is_ok());
}

#[test]
fn other_seeds_sizes_or_pools_than_the_sources_are_refused() {
    let owned = pools(4, 1 << 14);
    let pools = borrowed(&owned);
    let batch = two_keys(&pools[..3]);
    let (k, confirm) = (batch.words_per_pool, &batch.confirm);
    let mismatch = EngineError::ConfirmMismatch;
    refused(regenerate(&pools[..3], &seeds(8), 32, &key_ids(2), k, confirm), mismatch.clone());
    refused(regenerate(&pools[1..], &seeds(9), 32, &key_ids(2), k, confirm), mismatch.clone());
    refused(regenerate(&pools, &seeds(9), 32, &key_ids(2), k, confirm), mismatch.clone());
    refused(regenerate(&pools[..3], &seeds(9), 31, &key_ids(2), k, confirm), mismatch.clone());
    refused(regenerate(&pools[..3], &seeds(9), 32, &key_ids(1), k, confirm), mismatch.clone());
    refused(regenerate(&pools[..3], &seeds(9), 32, &key_ids(2), k + 1, confirm), mismatch);
}

#[test]
fn pools_outside_the_limits_are_refused() {
    let owned = pools(9, 1 << 14);
    let pools = borrowed(&owned);
    let ids = key_ids(1);
    for count in [0, 1, 9] {
        let result = generate(&pools[..count], &seeds(1), 32, &ids);
        refused(result, EngineError::PoolCount { count });
    }
    let all = &owned[1].words;
    for words in [&all[..0], &all[..1 << 13], &all[..(1 << 14) - 1]] {
        let pools = [pools[0], SourcePool { id: pools[1].id, words }];
        let expected = EngineError::PoolSize { index: 1, words: words.len() };
        refused(generate(&pools, &seeds(1), 32, &ids), expected);
    }
    let twice = [pools[0], pools[1], SourcePool { id: pools[0].id, words: pools[2].words }];
    refused(generate(&twice, &seeds(1), 32, &ids), EngineError::RepeatedPool { index: 2 });
}

#[test]
fn keys_outside_the_limits_are_refused() {
    let owned = pools(2, 1 << 14);
    let pools = borrowed(&owned);
    let make = |key_bytes, ids: &[KeyId]| generate(&pools, &seeds(1), key_bytes, ids);
    refused(make(0, &key_ids(1)), EngineError::EmptyKey);
    refused(make(32, &[]), EngineError::KeyCount { count: 0 });
    refused(make(32, &key_ids(65)), EngineError::KeyCount { count: 65 });
    let expected = EngineError::OutputTooLong { key_bytes: 16_369, key_count: 1 };
    refused(make(16_369, &key_ids(1)), expected);
    let mut ids = key_ids(3);
    ids[2] = ids[0];
    refused(make(32, &ids), EngineError::RepeatedKeyId { index: 2 });
    let confirm = Confirm::from_bytes([0; 16]);
    let result = regenerate(&pools, &seeds(1), 32, &ids, 200, &confirm);
    refused(result, EngineError::RepeatedKeyId { index: 2 });
}
