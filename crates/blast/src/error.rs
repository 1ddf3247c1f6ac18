//! Why the engine refuses a batch. Messages name sizes and places, never seeds, pools or keys.

use super::limits::{
    MAX_KEYS_PER_BATCH, MAX_OUTPUT_BITS, MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS,
};

/// The engine refuses a batch. Nothing was derived and nothing was spent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Too few or too many pools.
    #[error("{count} pools were given, a batch takes {MIN_POOLS} to {MAX_POOLS}")]
    PoolCount {
        /// Pools given.
        count: usize,
    },
    /// A pool whose size is not a power of two within the limits.
    #[error(
        "pool {index} has {words} words, not a power of two between {MIN_POOL_WORDS} and {MAX_POOL_WORDS}"
    )]
    PoolSize {
        /// Place of the pool in the batch, from 0.
        index: usize,
        /// Its 64-bit words.
        words: usize,
    },
    /// The same pool twice. The second would cancel or repeat the first.
    #[error("pool {index} has the same ID as an earlier pool of the batch")]
    RepeatedPool {
        /// Place of the second occurrence, from 0.
        index: usize,
    },
    /// Keys of no bytes.
    #[error("a key must have at least one byte")]
    EmptyKey,
    /// No keys, or more than one extraction gives.
    #[error("{count} keys were asked for, a batch has 1 to {MAX_KEYS_PER_BATCH}")]
    KeyCount {
        /// Keys asked for.
        count: usize,
    },
    /// The same key ID twice. Both keys would get the same mask.
    #[error("key ID {index} repeats an earlier key ID of the batch")]
    RepeatedKeyId {
        /// Place of the second occurrence, from 0.
        index: usize,
    },
    /// More output than one extraction gives.
    #[error("{key_count} keys of {key_bytes} bytes exceed the {MAX_OUTPUT_BITS} bits of one batch")]
    OutputTooLong {
        /// Bytes of each key.
        key_bytes: usize,
        /// Keys asked for.
        key_count: usize,
    },
    /// The sample is too small for the security claim.
    #[error("a sample of {given} words is below the rule: {output_bits} bits of output need {least}")]
    SampleTooSmall {
        /// Words of each pool, as given.
        given: u32,
        /// Least number of words by the rule.
        least: u32,
        /// Output bits of the batch.
        output_bits: u64,
    },
    /// The sample is larger than a quarter of a pool, or than any batch needs.
    #[error("a sample of {given} words is above the limit of {most} for these pools")]
    SampleTooLarge {
        /// Words of each pool.
        given: u32,
        /// Most words allowed.
        most: u32,
    },
    /// The confirmation values differ.
    #[error("the confirmation value does not match: the pools or the metadata of the two sites differ")]
    ConfirmMismatch,
    /// The batch would cross the budget of its pool set.
    #[error("the batch needs {asked_bits} bits, the pool set has {left_bits} left: make a new set")]
    BudgetSpent {
        /// Output bits of the batch.
        asked_bits: u64,
        /// Output bits that the set can still give.
        left_bits: u64,
    },
}
