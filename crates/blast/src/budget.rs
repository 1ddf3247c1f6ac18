//! How much output a pool set may still give.

use super::error::EngineError;

/// A quarter of a pool's bits may become output; another quarter is reserved for leakage.
const BUDGET_BITS_PER_WORD: u64 = 16;

/// The output bits that a pool set may still give: at first a quarter of the bits of its smallest pool.
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

    /// Takes the [`output_bits`](super::output_bits) of one batch. Do this before the batch is generated.
    ///
    /// # Errors
    /// [`EngineError::BudgetSpent`] when fewer are left; then nothing is spent.
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
    use super::super::limits::MIN_POOL_WORDS;
    use super::*;

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
