//! One batch: the source generates keys and a confirmation value, a recipient regenerates and checks them.
//!
//! Owns the refusals. Nothing is derived from pools, sizes or samples outside the limits, and a recipient gets no key
//! unless the confirmation value matches. The budget is not kept here.

use std::fmt;

use kme::{Key, KeyId, KeyMaterial, SecretBytes, Seed};
use shake::{ExtendableOutput as _, Shake256, Update as _, XofReader as _};
use subtle::ConstantTimeEq as _;

use super::SUITE;
use super::error::EngineError;
use super::extract::extract;
use super::limits::{CONFIRM_BITS, MAX_POOL_WORDS, MAX_POOLS, MAX_WORDS_PER_POOL, MIN_POOL_WORDS, MIN_POOLS};
use super::pool::SourcePool;
use super::sizes::{output_bits, sample_holds, words_per_pool};
use super::toeplitz::Product;
use super::wiped::Wiped;

/// The two seeds of a batch, drawn for it alone. They travel inside the metadata only.
#[derive(Debug)]
pub struct BatchSeeds {
    /// Chooses the sample and the diagonal.
    pub seed: Seed,
    /// Masks the keys, as a second line of defence.
    pub mask_seed: Seed,
}

/// The confirmation value of a batch: the last 16 bytes of the extractor's output.
///
/// It is independent of the keys, so it may travel in the metadata. Compared in constant time.
#[derive(Clone, Copy)]
pub struct Confirm([u8; Confirm::LEN_BYTES]);

impl Confirm {
    /// Length in bytes.
    pub const LEN_BYTES: usize = (CONFIRM_BITS / 8) as usize;

    /// From the bytes of the metadata.
    pub const fn from_bytes(bytes: [u8; Self::LEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes for the metadata.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN_BYTES] {
        &self.0
    }
}

impl PartialEq for Confirm {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Confirm {}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm(16 bytes)")
    }
}

/// What the source gets from one batch.
#[derive(Debug)]
pub struct Generated {
    /// The keys, in the order of the key IDs.
    pub keys: Vec<Key>,
    /// Goes into the metadata.
    pub confirm: Confirm,
    /// The sample size k; goes into the metadata.
    pub words_per_pool: u32,
}

/// Makes the keys of a batch at the source, with the fastest product of this processor.
///
/// Takes 2 to 8 pools with distinct IDs and 1 to 64 distinct key IDs, for at most 2^17 output bits. The caller draws
/// seeds and key IDs for this batch alone, and spends its [`output_bits`](super::output_bits) from the
/// [`Budget`](super::Budget) of the pool set before. Source: `docs/blast-engine.md`, section 4.
///
/// # Errors
/// [`EngineError`] for anything outside these limits, or a pool too small for the sample.
pub fn generate(
    pools: &[SourcePool<'_>],
    seeds: &BatchSeeds,
    key_bytes: usize,
    key_ids: &[KeyId],
) -> Result<Generated, EngineError> {
    generate_with(Product::detect(), pools, seeds, key_bytes, key_ids)
}

/// [`generate`] with a chosen product.
///
/// # Errors
/// As [`generate`].
pub fn generate_with(
    product: Product,
    pools: &[SourcePool<'_>],
    seeds: &BatchSeeds,
    key_bytes: usize,
    key_ids: &[KeyId],
) -> Result<Generated, EngineError> {
    let bits = checked_output_bits(pools, key_bytes, key_ids)?;
    let words_per_pool =
        words_per_pool(bits).ok_or(EngineError::OutputTooLong { key_bytes, key_count: key_ids.len() })?;
    check_sample_fits(pools, words_per_pool)?;
    let (output, confirm) = derive(product, pools, seeds, bits, words_per_pool)?;
    Ok(Generated { keys: masked_keys(&output, seeds, key_bytes, key_ids), confirm, words_per_pool })
}

/// Makes the same keys at a recipient from the metadata, with the fastest product of this processor.
///
/// Takes what [`generate`] takes; `words_per_pool` must fulfil the sample size rule (with 131 bits) and `confirm`
/// must match. Source: `docs/blast-engine.md`, sections 3 and 4.
///
/// # Errors
/// [`EngineError`] says which part of the metadata is wrong. Then no key is made.
pub fn regenerate(
    pools: &[SourcePool<'_>],
    seeds: &BatchSeeds,
    key_bytes: usize,
    key_ids: &[KeyId],
    words_per_pool: u32,
    confirm: &Confirm,
) -> Result<Vec<Key>, EngineError> {
    regenerate_with(Product::detect(), pools, seeds, key_bytes, key_ids, words_per_pool, confirm)
}

/// [`regenerate`] with a chosen product.
///
/// # Errors
/// As [`regenerate`].
pub fn regenerate_with(
    product: Product,
    pools: &[SourcePool<'_>],
    seeds: &BatchSeeds,
    key_bytes: usize,
    key_ids: &[KeyId],
    words_per_pool: u32,
    confirm: &Confirm,
) -> Result<Vec<Key>, EngineError> {
    let bits = checked_output_bits(pools, key_bytes, key_ids)?;
    if !sample_holds(words_per_pool, bits) {
        let least = super::sizes::words_per_pool(bits).unwrap_or(MAX_WORDS_PER_POOL);
        return Err(EngineError::SampleTooSmall { given: words_per_pool, least, output_bits: bits });
    }
    check_sample_fits(pools, words_per_pool)?;
    let (output, own_confirm) = derive(product, pools, seeds, bits, words_per_pool)?;
    if own_confirm != *confirm {
        return Err(EngineError::ConfirmMismatch);
    }
    Ok(masked_keys(&output, seeds, key_bytes, key_ids))
}

/// Output bits of a batch whose pools and key IDs are within the limits.
fn checked_output_bits(
    pools: &[SourcePool<'_>],
    key_bytes: usize,
    key_ids: &[KeyId],
) -> Result<u64, EngineError> {
    if !(MIN_POOLS..=MAX_POOLS).contains(&pools.len()) {
        return Err(EngineError::PoolCount { count: pools.len() });
    }
    for (index, pool) in pools.iter().enumerate() {
        let words = pool.words.len();
        if !words.is_power_of_two() || !(MIN_POOL_WORDS..=MAX_POOL_WORDS).contains(&words) {
            return Err(EngineError::PoolSize { index, words });
        }
    }
    if let Some(index) = first_repeat(pools, |pool| pool.id) {
        return Err(EngineError::RepeatedPool { index });
    }
    // Counts are checked before the search for repeats, which is quadratic.
    let bits = output_bits(key_bytes, key_ids.len())?;
    if let Some(index) = first_repeat(key_ids, |id| *id) {
        return Err(EngineError::RepeatedKeyId { index });
    }
    Ok(bits)
}

/// Place of the first item that has the name of an earlier one.
fn first_repeat<T, N: PartialEq>(items: &[T], name: impl Fn(&T) -> N) -> Option<usize> {
    (1..items.len()).find(|index| {
        let (earlier, rest) = items.split_at(*index);
        rest.first().is_some_and(|item| earlier.iter().any(|other| name(other) == name(item)))
    })
}

/// A sample is at most a quarter of each pool, and never more than [`MAX_WORDS_PER_POOL`].
fn check_sample_fits(pools: &[SourcePool<'_>], words_per_pool: u32) -> Result<(), EngineError> {
    let quarters = pools.iter().filter_map(|pool| u32::try_from(pool.words.len() / 4).ok());
    let most = quarters.fold(MAX_WORDS_PER_POOL, u32::min);
    if words_per_pool > most {
        return Err(EngineError::SampleTooLarge { given: words_per_pool, most });
    }
    Ok(())
}

/// The extractor's output and, from its end, the confirmation value.
fn derive(
    product: Product,
    pools: &[SourcePool<'_>],
    seeds: &BatchSeeds,
    bits: u64,
    words_per_pool: u32,
) -> Result<(Wiped<u8>, Confirm), EngineError> {
    let output_bytes = usize::try_from(bits / 8).unwrap_or_default();
    let output = extract(product, pools, &seeds.seed, words_per_pool as usize, output_bytes);
    let confirm = output.last_chunk().copied().map(Confirm).ok_or(EngineError::EmptyKey)?;
    Ok((output, confirm))
}

/// Each key is its part of the output XOR its mask. What is left at the end is the confirmation value.
fn masked_keys(output: &[u8], seeds: &BatchSeeds, key_bytes: usize, key_ids: &[KeyId]) -> Vec<Key> {
    let parts = output.chunks_exact(key_bytes);
    let keys = key_ids.iter().zip(parts).map(|(id, part)| {
        let mut bytes = SecretBytes::zeroed(key_bytes);
        let mut mask = Shake256::default();
        mask.update(SUITE.as_bytes());
        mask.update(b" mask\0");
        mask.update(seeds.mask_seed.expose());
        mask.update(id.as_bytes());
        mask.finalize_xof().read(bytes.expose_mut());
        bytes.expose_mut().iter_mut().zip(part).for_each(|(byte, part)| *byte ^= part);
        Key { id: *id, material: KeyMaterial::new(bytes) }
    });
    keys.collect()
}
