use proptest::prelude::*;

use super::*;

fn bit(words: &[u64], place: usize) -> u64 {
    words[place / 64] >> (place % 64) & 1
}

/// Step 4 of the specification, bit by bit, from its definition.
fn oracle(diagonal: &[u64], sample: &[u64], output_words: usize) -> Vec<u64> {
    let n = 64 * sample.len();
    let mut output = vec![0; output_words];
    for r in 0..64 * output_words {
        let sum = (0..n).fold(0, |sum, c| sum ^ bit(diagonal, r + n - 1 - c) & bit(sample, c));
        output[r / 64] |= sum << (r % 64);
    }
    output
}

fn check_all(diagonal: &[u64], sample: &[u64], output_words: usize, expected: &[u64]) {
    for product in Product::available() {
        assert_eq!(
            *multiply(product, diagonal, sample, output_words),
            *expected,
            "{} {}x{output_words}",
            product.name(),
            sample.len()
        );
    }
}

/// Words that look random, from a multiplicative generator: enough to find a wrong index.
fn words(seed: u64, count: usize) -> Vec<u64> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state ^ state >> 29
    };
    (0..count).map(next).collect()
}

#[test]
fn every_product_equals_the_definition_at_every_small_shape() {
    for sample_words in 1..=9 {
        for output_words in 1..=10 {
            let sample = words(sample_words as u64, sample_words);
            let diagonal = words(output_words as u64 + 77, sample_words + output_words);
            check_all(&diagonal, &sample, output_words, &oracle(&diagonal, &sample, output_words));
        }
    }
}

#[test]
fn every_product_is_the_same_at_the_sizes_of_real_batches() {
    // Outputs of 1, 16 and 64 keys of 256 bits, and of an odd length, from 2, 3 and 5 pools.
    for (sample_words, output_words) in [(360, 6), (1182, 66), (2775, 258), (1310, 26)] {
        let sample = words(5, sample_words);
        let diagonal = words(6, sample_words + output_words);
        let expected = multiply(Product::Portable, &diagonal, &sample, output_words);
        check_all(&diagonal, &sample, output_words, &expected);
    }
}

#[test]
fn edge_words_give_the_definition_on_every_product() {
    for fill in [0, 1, 1 << 63, u64::MAX, 0xaaaa_aaaa_aaaa_aaaa, 0x8421_0842_1084_2108] {
        for other in [0, 1, 1 << 63, u64::MAX] {
            let sample = [fill; 6];
            let diagonal = [other; 11];
            check_all(&diagonal, &sample, 5, &oracle(&diagonal, &sample, 5));
        }
    }
}

#[test]
fn each_single_bit_reaches_exactly_its_place() {
    // x = bit c and t = bit i give the single output bit i + c - (n - 1), where that is in range.
    let (sample_words, output_words) = (3, 18);
    let n = 64 * sample_words;
    for c in [0, 1, 63, 64, 127, n - 1] {
        for i in [0, 1, 63, 64, n - 2, n - 1, n, n + 64, n + 64 * output_words - 2] {
            let mut sample = vec![0; sample_words];
            sample[c / 64] = 1 << (c % 64);
            let mut diagonal = vec![0; sample_words + output_words];
            diagonal[i / 64] = 1 << (i % 64);
            let mut expected = vec![0; output_words];
            if let Some(r) = (i + c).checked_sub(n - 1).filter(|r| *r < 64 * output_words) {
                expected[r / 64] = 1 << (r % 64);
            }
            check_all(&diagonal, &sample, output_words, &expected);
        }
    }
}

#[test]
fn missing_diagonal_words_count_as_zero() {
    let (sample, diagonal) = (words(1, 5), words(2, 4));
    let mut whole = diagonal.clone();
    whole.resize(5 + 9, 0);
    check_all(&diagonal, &sample, 9, &oracle(&whole, &sample, 9));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_inputs_give_the_definition_on_every_product(
        sample in prop::collection::vec(any::<u64>(), 1..24),
        output_words in 1_usize..14,
        seed in any::<u64>(),
    ) {
        let diagonal = words(seed, sample.len() + output_words);
        check_all(&diagonal, &sample, output_words, &oracle(&diagonal, &sample, output_words));
    }
}
