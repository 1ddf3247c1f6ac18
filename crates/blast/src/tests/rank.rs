//! The proof of section 3, measured at toy size.
//!
//! One honest pool of N words of w = 8 bits, half of whose bits leaked (alpha = 1/2) as whole words or as
//! random linear functions; k of its words are sampled, beside a second pool that the adversary knows
//! entirely. A batch of m bits fails when a row of the extractor, or a sum of rows, restricted to the honest
//! pool depends on the leaked functions. Checked: the measured frequency is at most
//! `min over delta of 2^(-k D(delta || 1/2)) + 2^(m - (1 - delta) w k)`, for every m at which that is below 1;
//! and failures are seen where they must come, so that the measurement itself is known to work.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

use super::super::sampler::{positions, sub_seed};
use super::*;

const WORD_BITS: usize = 8;
const MAX_POOL_BITS: usize = 1024;

/// Sizes of one experiment.
#[derive(Clone, Copy)]
struct Toy {
    pool_words: usize,
    sample_words: usize,
    trials: u32,
}

impl Toy {
    fn leaked_rank(self) -> usize {
        WORD_BITS * self.pool_words / 2
    }

    fn sample_bits(self) -> usize {
        WORD_BITS * self.sample_words
    }
}

/// A linear function of the honest pool: which of its bits are added.
type Row = [u64; MAX_POOL_BITS / 64];

fn flip(row: &mut Row, bit: usize) {
    row[bit / 64] ^= 1 << (bit % 64);
}

/// A growing set of independent rows over GF(2), each kept under its lowest bit.
#[derive(Clone)]
struct Span {
    by_lowest_bit: Vec<Option<Row>>,
    rank: usize,
}

impl Span {
    fn empty() -> Self {
        Self { by_lowest_bit: vec![None; MAX_POOL_BITS], rank: 0 }
    }

    /// Whether `row` was independent of the rows so far.
    fn insert(&mut self, mut row: Row) -> bool {
        for word in 0..row.len() {
            while row[word] != 0 {
                let bit = 64 * word + row[word].trailing_zeros() as usize;
                let Some(own) = &self.by_lowest_bit[bit] else {
                    self.by_lowest_bit[bit] = Some(row);
                    self.rank += 1;
                    return true;
                };
                row.iter_mut().zip(own).for_each(|(row, own)| *row ^= own);
            }
        }
        false
    }
}

/// Output row r, restricted to the honest pool at place `index` of two: `t[r - c + n - 1]` at column c.
fn extractor_row(toy: Toy, diagonal: &[u8], drawn: &[u32], index: usize, r: usize) -> Row {
    let n = 2 * toy.sample_bits();
    let mut row = [0; MAX_POOL_BITS / 64];
    for (place, position) in drawn.iter().enumerate() {
        for bit in 0..WORD_BITS {
            let c = index * toy.sample_bits() + WORD_BITS * place + bit;
            let t = r + n - 1 - c;
            if diagonal[t / 8] >> (t % 8) & 1 == 1 {
                flip(&mut row, WORD_BITS * *position as usize + bit);
            }
        }
    }
    row
}

/// The first output length at which a batch with this seed fails; more output than sample always does.
fn failing_length(toy: Toy, leaked: &Span, trial: u32) -> usize {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&trial.to_le_bytes());
    let seed = Seed::copy_of(&bytes).unwrap();
    let index = usize::from(trial % 2 == 1);
    let pool = PoolId::from_bytes([5; 16]);
    let drawn = positions(&seed, u8::from(trial % 2 == 1), &pool, toy.pool_words, toy.sample_words);
    let mut diagonal = vec![0; (3 * toy.sample_bits()).div_ceil(8)];
    ChaCha20Rng::from_seed(*sub_seed("toeplitz", &[seed.expose()])).fill_bytes(&mut diagonal);
    let mut span = leaked.clone();
    let row = |r| extractor_row(toy, &diagonal, &drawn, index, r);
    (0..toy.sample_bits()).find(|r| !span.insert(row(*r))).unwrap_or(toy.sample_bits()) + 1
}

/// The claim of section 3 for m output bits, at the best of five hundred delta.
fn bound(toy: Toy, m: usize) -> f64 {
    let real = |number: usize| f64::from(u32::try_from(number).unwrap());
    let terms = (501..1000).map(|thousandths| {
        let delta = f64::from(thousandths) / 1000.0;
        let divergence = delta * (2.0 * delta).log2() + (1.0 - delta) * (2.0 - 2.0 * delta).log2();
        let free_bits = (1.0 - delta) * real(toy.sample_bits());
        (-real(toy.sample_words) * divergence).exp2() + (real(m) - free_bits).exp2()
    });
    terms.fold(f64::INFINITY, f64::min)
}

/// The failing length of every trial, after the frequencies were compared with the bound.
fn checked_failing_lengths(toy: Toy, leaked: &Span) -> Vec<usize> {
    assert_eq!(leaked.rank, toy.leaked_rank());
    let lengths: Vec<usize> = (0..toy.trials).map(|trial| failing_length(toy, leaked, trial)).collect();
    let meaningful: Vec<usize> = (1..=toy.sample_bits()).filter(|m| bound(toy, *m) < 1.0).collect();
    assert!(meaningful.len() > 100 && bound(toy, 16) < 0.001, "the bound must say something");
    for m in meaningful {
        let failed = u32::try_from(lengths.iter().filter(|length| **length <= m).count()).unwrap();
        let frequency = f64::from(failed) / f64::from(toy.trials);
        assert!(frequency <= bound(toy, m), "m = {m}: {frequency} > {}", bound(toy, m));
    }
    lengths
}

#[test]
fn rank_failures_stay_below_the_bound_when_half_of_the_words_leaked() {
    let toy = Toy { pool_words: 128, sample_words: 32, trials: 300 };
    let mut leaked = Span::empty();
    // 37 is odd, so this visits every word once, in no simple order.
    for word in (0..128).map(|step| step * 37 % 128).take(toy.pool_words / 2) {
        for bit in 0..WORD_BITS {
            let mut row = [0; MAX_POOL_BITS / 64];
            flip(&mut row, WORD_BITS * word + bit);
            leaked.insert(row);
        }
    }
    let lengths = checked_failing_lengths(toy, &leaked);
    // About 16 of the 32 sampled words leaked, so the lengths spread about 16 * 8 bits.
    let failed = |m| lengths.iter().filter(|length| **length <= m).count();
    assert!(failed(112) > 10 && failed(112) < 200, "{}", failed(112));
    assert!(failed(160) > 270, "{}", failed(160));
}

#[test]
fn rank_failures_stay_below_the_bound_when_random_linear_functions_leaked() {
    // Random functions hardly ever live on a quarter of a pool, so here three quarters are sampled: the proof
    // does not ask for less.
    let toy = Toy { pool_words: 64, sample_words: 48, trials: 60 };
    let mut generator = ChaCha20Rng::from_seed([42; 32]);
    let mut leaked = Span::empty();
    while leaked.rank < toy.leaked_rank() {
        let mut row = [0; MAX_POOL_BITS / 64];
        row[..8].fill_with(|| generator.next_u64());
        leaked.insert(row);
    }
    // 256 leaked dimensions meet the 384 sampled of 512 in 128, which leaves 256 bits of output.
    for length in checked_failing_lengths(toy, &leaked) {
        assert!((240..=257).contains(&length), "{length}");
    }
}
