//! The BLAST engine, suite `dqkd-blast-1`: turns samples of random pools into keys, the same at every site.
//!
//! Owns the sample size rule, the budget of a pool set, the sampler, the Toeplitz product and the batch.
//! Specification and proof: `docs/blast-engine.md`. Pure: it must not do I/O, read a clock or draw random
//! of its own; seeds and key IDs come in as arguments, so that two sites can compute the same.

mod batch;
mod error;
mod extract;
mod params;
mod sampler;
mod stream;
mod toeplitz;
mod wiped;

#[cfg(test)]
mod tests;

pub use batch::{
    BatchSeeds, Confirm, Generated, SourcePool, generate, generate_with, regenerate, regenerate_with,
};
pub use error::{Blame, EngineError};
pub use params::{
    Budget, CONFIRM_BITS, MAX_KEYS_PER_BATCH, MAX_OUTPUT_BITS, MAX_POOL_WORDS, MAX_POOLS, MAX_WORDS_PER_POOL,
    MIN_POOL_WORDS, MIN_POOLS, max_keys_per_batch, output_bits, sample_holds, words_per_pool,
};
pub use toeplitz::{Product, multiply};
pub use wiped::Wiped;

pub use sampler::first_positions;

/// Name of the construction; travels in the metadata of every batch and separates its hash domains.
pub const SUITE: &str = "dqkd-blast-1";
