//! The Toeplitz product of step 4: only the wanted coefficients of a carry-less product.
//!
//! Owns the arrangement (words, columns, Karatsuba); `portable` and `clmul` own the innermost loop. Control flow and
//! addresses depend on lengths only, never on the secret words.
//!
//! With `t` shifted up by one bit, output word `r` is word `W + r` of the product of `t` and the `W` words of `x`: the
//! low half of column `r + 1` XOR the high half of column `r`, where column
//! `c = XOR over j of t[c + j] * x[W - 1 - j]` is 128 bits wide. Columns are linear in `t` and `x`. A pair of columns
//! needs three products for each pair of words instead of four (Karatsuba, transposed). Split by even and odd places,
//! that is three correlations of half the size, and so on recursively.

#[cfg(target_arch = "x86_64")]
mod clmul;
mod portable;

use super::wiped::Wiped;

/// How carry-less products of words are computed. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Integer multiplication of spread bits. Runs everywhere, and the others are tested against it.
    Portable,
    /// The processor's carry-less multiplication.
    #[cfg(target_arch = "x86_64")]
    Clmul(clmul::Unit),
}

impl Product {
    /// The fastest product of this processor.
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// Every product that this processor has, the portable one first, the fastest last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "nothing to add there"))]
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        all.extend(clmul::Unit::available().map(Self::Clmul));
        all
    }

    /// Short name for reports and benches.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Clmul(unit) => unit.name(),
        }
    }

    /// Most columns that one pass of the innermost loop takes.
    const fn leaf_columns(self) -> usize {
        match self {
            Self::Portable => portable::LEAF_COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Self::Clmul(_) => clmul::LEAF_COLUMNS,
        }
    }

    /// Sets `columns[c]` to the XOR over `j` of `t[c + j] * x[j]`.
    fn correlate_leaf(self, t: &[u64], x: &[u64], columns: &mut [u128]) {
        match self {
            Self::Portable => portable::correlate(t, x, columns),
            #[cfg(target_arch = "x86_64")]
            Self::Clmul(unit) => unit.correlate(t, x, columns),
        }
    }
}

/// The innermost loops read four words at a time.
const LANE_WORDS: usize = 4;

/// Memory that the levels of [`correlate`] share. Each level takes its part from the front.
struct Scratch<'a> {
    words: &'a mut [u64],
    columns: &'a mut [u128],
}

/// Bits `n - 1` and following of the carry-less product of `diagonal` and `sample` (of `n` bits), as
/// `output_words` words.
///
/// Bit `j` of a string is bit `j mod 64` of word `j div 64`. Of `diagonal`, `sample.len() + output_words` words are
/// read; missing ones count as zero. Source: `docs/blast-engine.md`, section 4, step 4.
pub fn multiply(product: Product, diagonal: &[u64], sample: &[u64], output_words: usize) -> Wiped<u64> {
    let (mut depth, mut leaf_columns) = (0, output_words + 1);
    while leaf_columns > product.leaf_columns() {
        leaf_columns = leaf_columns.div_ceil(2);
        depth += 1;
    }
    let column_count = leaf_columns << depth;
    let x_words = sample.len().next_multiple_of(LANE_WORDS << depth);
    let t_words = x_words + column_count;

    let mut x = Wiped::zeroed(x_words);
    for (to, from) in x.iter_mut().zip(sample.iter().rev()) {
        *to = *from;
    }
    let mut t = Wiped::zeroed(t_words);
    let mut carried = 0;
    for (to, from) in t.iter_mut().zip(diagonal) {
        *to = (from << 1) | carried;
        carried = from >> 63;
    }
    let mut columns = Wiped::zeroed(column_count);
    let mut words = Wiped::zeroed(t_words + x_words);
    let mut parts = Wiped::zeroed(column_count);
    correlate(product, depth, &t, &x, &mut columns, Scratch { words: &mut words, columns: &mut parts });

    let mut output = Wiped::zeroed(output_words);
    for (word, (lower, upper)) in output.iter_mut().zip(columns.iter().zip(columns.iter().skip(1))) {
        *word = high(*lower) ^ low(*upper);
    }
    output
}

#[expect(clippy::cast_possible_truncation, reason = "wants the lower half")]
const fn low(column: u128) -> u64 {
    column as u64
}

const fn high(column: u128) -> u64 {
    (column >> 64) as u64
}

/// Sets `columns[c]` to the XOR over `j` of `t[c + j] * x[j]`, halving `depth` times.
///
/// `t` has `x.len() + columns.len()` words; the last one is in no column.
fn correlate(product: Product, depth: u32, t: &[u64], x: &[u64], columns: &mut [u128], scratch: Scratch<'_>) {
    if depth == 0 {
        product.correlate_leaf(t, x, columns);
        return;
    }
    let (half_x, half_columns) = (x.len() / 2, columns.len() / 2);
    let (sub_t, words) = scratch.words.split_at_mut(half_x + half_columns);
    let (sub_x, words) = words.split_at_mut(half_x);
    let (part, parts) = scratch.columns.split_at_mut(half_columns);
    let t_pairs = t.as_chunks::<2>().0;
    let x_pairs = x.as_chunks::<2>().0;
    let column_pairs = columns.as_chunks_mut::<2>().0;

    // t1 * (x0 + x1), shared by both columns of a pair.
    fill(sub_t, t_pairs, |[_, odd]| *odd);
    fill(sub_x, x_pairs, |[even, odd]| even ^ odd);
    correlate(product, depth - 1, sub_t, sub_x, part, Scratch { words, columns: parts });
    for (pair, shared) in column_pairs.iter_mut().zip(&*part) {
        *pair = [*shared, *shared];
    }

    // (t0 + t1) * x0, the rest of the even columns.
    fill(sub_t, t_pairs, |[even, odd]| even ^ odd);
    fill(sub_x, x_pairs, |[even, _]| *even);
    correlate(product, depth - 1, sub_t, sub_x, part, Scratch { words, columns: parts });
    for ([even, _], own) in column_pairs.iter_mut().zip(&*part) {
        *even ^= own;
    }

    // (t1 + t2) * x1, the rest of the odd columns. The last word has no successor and is never used.
    let successors = t_pairs.get(1..).unwrap_or_default();
    for ((to, [_, odd]), [next, _]) in sub_t.iter_mut().zip(t_pairs).zip(successors) {
        *to = odd ^ next;
    }
    fill(sub_x, x_pairs, |[_, odd]| *odd);
    correlate(product, depth - 1, sub_t, sub_x, part, Scratch { words, columns: parts });
    for ([_, odd], own) in column_pairs.iter_mut().zip(&*part) {
        *odd ^= own;
    }
}

fn fill(to: &mut [u64], pairs: &[[u64; 2]], word: impl Fn(&[u64; 2]) -> u64) {
    for (to, pair) in to.iter_mut().zip(pairs) {
        *to = word(pair);
    }
}

#[cfg(test)]
mod tests;
