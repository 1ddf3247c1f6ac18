//! The extractor: pools and seed to output bits (steps 1 to 4 of `docs/blast-engine.md`, section 4).
//!
//! Linear in the pools. Checks nothing: `batch` refuses wrong sizes before.

use kme::Seed;

use super::pool::SourcePool;
use super::sampler::{gather, positions, sub_seed};
use super::stream::Stream;
use super::toeplitz::{Product, multiply};
use super::wiped::Wiped;

/// `output_bytes` bytes from `words_per_pool` words of each pool. Wiped on drop.
pub(super) fn extract(
    product: Product,
    pools: &[SourcePool<'_>],
    seed: &Seed,
    words_per_pool: usize,
    output_bytes: usize,
) -> Wiped<u8> {
    let mut sample = Wiped::zeroed(pools.len() * words_per_pool);
    for ((index, pool), part) in (0_u8..).zip(pools).zip(sample.chunks_exact_mut(words_per_pool)) {
        let positions = positions(seed, index, &pool.id, pool.words.len(), words_per_pool);
        gather(pool.words, &positions, part);
    }
    let output_words = output_bytes.div_ceil(8);
    let mut generator = Stream::of(&sub_seed("toeplitz", &[seed.expose()]));
    let diagonal = words(&mut generator, sample.len() + output_words);
    let output = multiply(product, &diagonal, &sample, output_words);
    let mut bytes = Wiped::zeroed(output_bytes);
    for (to, word) in bytes.chunks_mut(8).zip(output.iter()) {
        to.iter_mut().zip(word.to_le_bytes()).for_each(|(to, byte)| *to = byte);
    }
    bytes
}

/// The next `count` 64-bit words of the generator. Bits past the last that the product needs change only output bits
/// that nobody reads.
fn words(generator: &mut Stream, count: usize) -> Wiped<u64> {
    let mut words = Wiped::zeroed(count);
    for word in words.iter_mut() {
        *word = generator.next_u64();
    }
    words
}
