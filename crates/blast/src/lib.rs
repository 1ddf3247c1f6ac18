//! The BLAST engine, suite `dqkd-blast-1`: turns samples of random pools into keys, the same at every site.
//!
//! For the two KMEs of a batch: the source [`generate`]s its keys, a recipient [`regenerate`]s them from the same
//! pools and the metadata of the batch. The crate owns the sample size rule, the budget of a pool set, the sampler,
//! the Toeplitz product and the batch. `docs/blast-engine.md` is its specification and proof.
//!
//! It must not do I/O, read a clock or draw random numbers: seeds and key IDs are arguments, so that two sites can
//! compute the same. It does not keep the budget either; the owner of the pool set does, with [`Budget`].
//!
//! # Example
//!
//! Two sites hold the same two pools and get the same keys:
//!
//! ```
//! use blast::{BatchSeeds, MIN_POOL_WORDS, SourcePool, generate, regenerate};
//! use kme::{KeyId, OsRandom, PoolId, Random as _, Seed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let random_words = || -> Result<Vec<u64>, kme::RandomError> {
//!     let mut bytes = vec![0; 8 * MIN_POOL_WORDS];
//!     OsRandom.fill(&mut bytes)?;
//!     Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
//! };
//! let (one, other) = (random_words()?, random_words()?);
//! let pools = [
//!     SourcePool { id: PoolId::draw(&OsRandom)?, words: &one },
//!     SourcePool { id: PoolId::draw(&OsRandom)?, words: &other },
//! ];
//! let seeds = BatchSeeds { seed: Seed::draw(&OsRandom)?, mask_seed: Seed::draw(&OsRandom)? };
//! let key_ids = KeyId::draw_batch(2, &OsRandom)?;
//!
//! let source = generate(&pools, &seeds, 32, &key_ids)?;
//! // The metadata: seeds, key size, key IDs, pool IDs, sample size and confirmation value.
//! let recipient = regenerate(&pools, &seeds, 32, &key_ids, source.words_per_pool, &source.confirm)?;
//!
//! assert_eq!(source.keys.len(), 2);
//! assert!(source.keys.iter().zip(&recipient).all(|(key, twin)| key.material.ct_eq(&twin.material)));
//! # Ok(())
//! # }
//! ```

mod batch;
mod budget;
mod error;
mod extract;
mod limits;
mod pool;
mod sampler;
mod sizes;
mod stream;
mod toeplitz;
mod wiped;

#[cfg(test)]
mod tests;

pub use batch::{BatchSeeds, Confirm, Generated, generate, generate_with, regenerate, regenerate_with};
pub use budget::Budget;
pub use error::EngineError;
pub use limits::{MAX_KEYS_PER_BATCH, MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS};
pub use pool::SourcePool;
pub use sampler::first_positions;
pub use sizes::{max_keys_per_batch, output_bits, words_per_pool};
pub use toeplitz::{Product, multiply};
pub use wiped::Wiped;

/// Name of the construction. It stands in the metadata of every batch and keeps the engine's hashes apart from
/// those of other programs.
pub const SUITE: &str = "dqkd-blast-1";
