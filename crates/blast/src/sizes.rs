//! How much output a batch has, and how many words it must sample for that.
//!
//! With `limits` and `budget`, these are the numbers of the security claim (`docs/blast-engine.md`, section 3).

use super::error::EngineError;
use super::limits::{CONFIRM_BITS, MAX_KEYS_PER_BATCH, MAX_OUTPUT_BITS, MAX_WORDS_PER_POOL};

/// A source samples so much that each error term of its batch is at most 2^-132.
const TARGET_BITS: u32 = 132;
/// A recipient demands one bit less, so that rounding never makes two honest sites disagree.
const ACCEPTED_BITS: u32 = 131;
const WORD_BITS: u32 = 64;

/// Binary relative entropy `D(delta || 1/2)` in bits, for `delta` strictly between 0 and 1.
fn divergence(delta: f64) -> f64 {
    let rest = 1.0 - delta;
    delta * (2.0 * delta).log2() + rest * (2.0 * rest).log2()
}

/// Whether some delta fulfils both inequalities of the sample size rule.
///
/// The second inequality bounds delta from above, and the first is easiest at that bound: one evaluation decides. A
/// test compares this with the reference's double bisection for every possible output length.
fn rule_holds(words: u32, output_bits: u32, target_bits: u32) -> bool {
    let needed = f64::from(output_bits) + f64::from(target_bits);
    let delta = 1.0 - needed / (f64::from(WORD_BITS) * f64::from(words));
    words >= target_bits && delta > 0.5 && f64::from(words) * divergence(delta) >= f64::from(target_bits)
}

fn narrow_output_bits(output_bits: u64) -> Option<u32> {
    u32::try_from(output_bits).ok().filter(|_| output_bits <= MAX_OUTPUT_BITS)
}

/// The sample size k: how many words of each pool a batch of `output_bits` samples.
///
/// `None` above 2^17 bits. Source: `docs/blast-engine.md`, section 3, "Sample size rule".
pub fn words_per_pool(output_bits: u64) -> Option<u32> {
    let bits = narrow_output_bits(output_bits)?;
    // The rule is monotone in k: it fails at `below` and holds at `enough`.
    let (mut below, mut enough) = (TARGET_BITS - 1, MAX_WORDS_PER_POOL);
    while enough - below > 1 {
        let middle = below.midpoint(enough);
        if rule_holds(middle, bits, TARGET_BITS) {
            enough = middle;
        } else {
            below = middle;
        }
    }
    Some(enough)
}

/// Whether a recipient accepts a sample of `words` words of each pool for `output_bits`.
///
/// Source: `docs/blast-engine.md`, section 3, with 131 in place of 132.
pub(super) fn sample_holds(words: u32, output_bits: u64) -> bool {
    narrow_output_bits(output_bits).is_some_and(|bits| rule_holds(words, bits, ACCEPTED_BITS))
}

/// Output bits of a batch: the keys and the confirmation value.
///
/// # Errors
/// [`EngineError`] for keys of no bytes, no or too many keys, or more than 2^17 bits in all.
pub fn output_bits(key_bytes: usize, key_count: usize) -> Result<u64, EngineError> {
    if key_bytes == 0 {
        return Err(EngineError::EmptyKey);
    }
    if !(1..=MAX_KEYS_PER_BATCH).contains(&key_count) {
        return Err(EngineError::KeyCount { count: key_count });
    }
    key_bytes
        .checked_mul(key_count)
        .and_then(|bytes| u64::try_from(bytes).ok()?.checked_mul(8)?.checked_add(CONFIRM_BITS))
        .filter(|bits| *bits <= MAX_OUTPUT_BITS)
        .ok_or(EngineError::OutputTooLong { key_bytes, key_count })
}

/// Most keys of `key_bytes` that one batch gives; 0 when not even one fits (or for keys of no bytes).
pub fn max_keys_per_batch(key_bytes: usize) -> usize {
    const ROOM_BYTES: usize = ((MAX_OUTPUT_BITS - CONFIRM_BITS) / 8) as usize;
    ROOM_BYTES.checked_div(key_bytes).unwrap_or(0).min(MAX_KEYS_PER_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference, ported as it stands: most output bits for which its bisection accepts `words`.
    fn reference_capacity_bits(words: u32) -> f64 {
        let (mut low, mut high) = (0.5_f64, 1.0_f64);
        for _ in 0..100 {
            let middle = f64::midpoint(low, high);
            let rest = 1.0 - middle;
            let mut entropy = middle * (middle / 0.5).log2();
            if middle < 1.0 {
                entropy += rest * (rest / 0.5).log2();
            }
            if f64::from(words) * entropy >= 132.0 {
                high = middle;
            } else {
                low = middle;
            }
        }
        (1.0 - high) * 64.0 * f64::from(words)
    }

    #[test]
    fn the_tabulated_sample_sizes_hold() {
        for (bits, words) in
            [(136, 160), (384, 180), (4224, 394), (16512, 925), (65664, 2764), (MAX_OUTPUT_BITS, 5060)]
        {
            assert_eq!(words_per_pool(bits), Some(words), "{bits} bits");
        }
        assert_eq!(words_per_pool(MAX_OUTPUT_BITS + 1), None);
    }

    #[test]
    fn every_output_length_gets_the_sample_of_the_references_search() {
        let mut words = 132;
        for bits in 0..=u32::try_from(MAX_OUTPUT_BITS).unwrap() {
            while reference_capacity_bits(words) < f64::from(bits) + 132.0 {
                words += 1;
            }
            assert_eq!(words_per_pool(bits.into()), Some(words), "{bits} bits");
        }
    }

    #[test]
    fn a_recipient_accepts_the_rule_and_refuses_clearly_less() {
        for bits in (8..=MAX_OUTPUT_BITS).step_by(8) {
            let words = words_per_pool(bits).unwrap();
            assert!(sample_holds(words, bits));
            assert!(!sample_holds(words - words / 50 - 2, bits), "{bits} bits");
        }
        assert!(!sample_holds(130, 0));
        assert!(!sample_holds(MAX_WORDS_PER_POOL, MAX_OUTPUT_BITS + 1));
    }

    #[test]
    fn output_lengths_outside_the_limits_are_refused() {
        assert_eq!(output_bits(32, 16), Ok(4224));
        assert_eq!(output_bits(8192, 1), Ok(65664));
        assert_eq!(output_bits(0, 1), Err(EngineError::EmptyKey));
        assert_eq!(output_bits(32, 0), Err(EngineError::KeyCount { count: 0 }));
        assert_eq!(output_bits(32, 65), Err(EngineError::KeyCount { count: 65 }));
        assert_eq!(output_bits(16_368, 1), Ok(MAX_OUTPUT_BITS));
        assert!(matches!(output_bits(16_369, 1), Err(EngineError::OutputTooLong { .. })));
        assert!(matches!(output_bits(usize::MAX, 2), Err(EngineError::OutputTooLong { .. })));
    }

    #[test]
    fn the_largest_batch_fits_and_one_key_more_does_not() {
        for key_bytes in 1..=16_368 {
            let most = max_keys_per_batch(key_bytes);
            assert!(output_bits(key_bytes, most).is_ok(), "{key_bytes}");
            assert!(output_bits(key_bytes, most + 1).is_err(), "{key_bytes}");
        }
        assert_eq!(max_keys_per_batch(16_369), 0);
        assert_eq!(max_keys_per_batch(0), 0);
    }
}
