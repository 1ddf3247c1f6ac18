//! The extractor: pools and seed to output bits (steps 1 to 4 of `docs/blast-engine.md`, section 4).
//!
//! Linear in the pools. It checks nothing: `batch` refuses bad sizes before it comes here.

use chacha20::ChaCha20Rng;
use rand_core::Rng as _;
use zeroize::Zeroizing;

use super::batch::SourcePool;
use super::sampler::{gather, positions, stream, sub_seed};
use super::toeplitz::{Product, multiply};
use crate::kme::Seed;

/// `output_bytes` bytes from `words_per_pool` words of each pool. Wiped on drop.
pub(super) fn extract(
    product: Product,
    pools: &[SourcePool<'_>],
    seed: &Seed,
    words_per_pool: usize,
    output_bytes: usize,
) -> Zeroizing<Vec<u8>> {
    let mut sample = Zeroizing::new(vec![0_u64; pools.len() * words_per_pool]);
    for ((index, pool), part) in (0_u8..).zip(pools).zip(sample.chunks_exact_mut(words_per_pool)) {
        let positions = positions(seed, index, &pool.id, pool.words.len(), words_per_pool);
        gather(pool.words, &positions, part);
    }
    let output_words = output_bytes.div_ceil(8);
    let mut generator = stream(&sub_seed("toeplitz", &[seed.expose()]));
    let diagonal = words(&mut generator, sample.len() + output_words);
    let output = multiply(product, &diagonal, &sample, output_words);
    let mut bytes = Zeroizing::new(vec![0; output_bytes]);
    for (to, word) in bytes.chunks_mut(8).zip(output.iter()) {
        to.iter_mut().zip(word.to_le_bytes()).for_each(|(to, byte)| *to = byte);
    }
    bytes
}

/// The next `count` words of the generator, little-endian. Bits past the last that the product needs change
/// only output bits that nobody reads.
fn words(generator: &mut ChaCha20Rng, count: usize) -> Zeroizing<Vec<u64>> {
    let mut words = Zeroizing::new(vec![0_u64; count]);
    let mut buffer = Zeroizing::new([0_u8; 512]);
    for group in words.chunks_mut(64) {
        generator.fill_bytes(&mut *buffer);
        for (word, bytes) in group.iter_mut().zip(buffer.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
    words
}
