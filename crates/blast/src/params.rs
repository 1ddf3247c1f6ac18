//! Sizes: how many words to sample for how much output, the limits of a batch, the budget of a pool set.
//!
//! Owns every number of the security claim (`docs/blast-engine.md`, section 3); no other file may weaken one.

use super::EngineError;

/// Fewest pools of a batch: with one, its server would know every key.
pub const MIN_POOLS: usize = 2;
/// Most pools of a batch.
pub const MAX_POOLS: usize = 8;
/// Fewest 64-bit words of a pool.
pub const MIN_POOL_WORDS: usize = 1 << 14;
/// Most 64-bit words of a pool.
pub const MAX_POOL_WORDS: usize = 1 << 27;
/// Most keys of one batch.
pub const MAX_KEYS_PER_BATCH: usize = 64;
/// Most output bits of one batch, the confirmation value included.
pub const MAX_OUTPUT_BITS: u64 = 1 << 17;
/// Bits of the confirmation value, the last of every output.
pub const CONFIRM_BITS: u64 = 128;
/// Most words sampled from one pool. The largest output needs fewer (5060); the rest is room for a source
/// that samples generously, while metadata can never make a recipient allocate without bound.
pub const MAX_WORDS_PER_POOL: u32 = 8192;

/// Each error term of a batch that we generate is at most 2^-132.
const TARGET_BITS: u32 = 132;
/// What a recipient demands, one bit less: rounding can never make two honest sites disagree.
const ACCEPTED_BITS: u32 = 131;
const WORD_BITS: u32 = 64;
/// At most a quarter of a pool's bits is drawn as output; another quarter is reserved for leakage.
const BUDGET_BITS_PER_WORD: u64 = 16;

/// Binary relative entropy `D(delta || 1/2)` in bits, for `delta` strictly between 0 and 1.
fn divergence(delta: f64) -> f64 {
    let rest = 1.0 - delta;
    delta * (2.0 * delta).log2() + rest * (2.0 * rest).log2()
}

/// Whether some delta fulfils both inequalities of the sample size rule.
///
/// The largest delta that the second inequality admits is best for the first, so one evaluation decides.
/// A test compares this with the reference's double bisection for every possible output length.
fn rule_holds(words: u32, output_bits: u32, target_bits: u32) -> bool {
    let needed = f64::from(output_bits) + f64::from(target_bits);
    let delta = 1.0 - needed / (f64::from(WORD_BITS) * f64::from(words));
    words >= target_bits && delta > 0.5 && f64::from(words) * divergence(delta) >= f64::from(target_bits)
}

fn narrow_output_bits(output_bits: u64) -> Option<u32> {
    u32::try_from(output_bits).ok().filter(|_| output_bits <= MAX_OUTPUT_BITS)
}

/// The sample size k in words of each pool for `output_bits` (confirmation value included).
///
/// `None` above [`MAX_OUTPUT_BITS`]. Source: `docs/blast-engine.md`, section 3, "Sample size rule".
pub fn words_per_pool(output_bits: u64) -> Option<u32> {
    let bits = narrow_output_bits(output_bits)?;
    // The rule is monotone in k; it fails at `below` and holds at `enough`.
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

/// Whether a recipient accepts a sample of `words` of each pool for `output_bits`.
///
/// Source: `docs/blast-engine.md`, section 3: the two inequalities with 131 in place of 132.
pub fn sample_holds(words: u32, output_bits: u64) -> bool {
    narrow_output_bits(output_bits).is_some_and(|bits| rule_holds(words, bits, ACCEPTED_BITS))
}

/// Output bits of a batch: the keys and the confirmation value.
///
/// # Errors
/// [`EngineError`] for keys of no bytes, no or too many keys, or more than [`MAX_OUTPUT_BITS`].
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

/// Output bits that a pool set can still give: at first a quarter of the bits of its smallest pool.
///
/// Source: `docs/blast-engine.md`, section 3, "budget rule".
#[derive(Debug)]
pub struct Budget {
    left_bits: u64,
}

impl Budget {
    /// The whole budget of a set whose smallest pool has `smallest_pool_words` words.
    pub fn for_pool_words(smallest_pool_words: usize) -> Self {
        let words = u64::try_from(smallest_pool_words).unwrap_or(u64::MAX);
        Self { left_bits: words.saturating_mul(BUDGET_BITS_PER_WORD) }
    }

    /// Bits left.
    pub fn left_bits(&self) -> u64 {
        self.left_bits
    }

    /// Takes the [`output_bits`] of one batch, before it is generated.
    ///
    /// # Errors
    /// [`EngineError::BudgetSpent`] when they are not left; nothing is spent then.
    pub fn spend(&mut self, bits: u64) -> Result<(), EngineError> {
        self.left_bits = self
            .left_bits
            .checked_sub(bits)
            .ok_or(EngineError::BudgetSpent { asked_bits: bits, left_bits: self.left_bits })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Direct port of the reference: most output bits for which its bisection accepts `words`.
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

    #[test]
    fn the_batch_that_would_cross_the_budget_is_refused_and_spends_nothing() {
        let mut budget = Budget::for_pool_words(MIN_POOL_WORDS);
        assert_eq!(budget.left_bits(), 64 * 16_384 / 4);
        budget.spend(262_000).unwrap();
        let refused = EngineError::BudgetSpent { asked_bits: 145, left_bits: 144 };
        assert_eq!(budget.spend(145), Err(refused));
        assert_eq!(budget.left_bits(), 144);
        budget.spend(144).unwrap();
        assert!(budget.spend(1).is_err());
    }
}
