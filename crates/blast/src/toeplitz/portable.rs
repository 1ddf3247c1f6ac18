//! Carry-less multiplication from integer multiplication, for every processor.
//!
//! Bits are spread five places apart. At most 13 ones meet in one place of a product, and 13 < 32, so they cannot carry
//! into the next bit that counts. No branch and no address depends on a word. A 64-bit multiplication takes constant
//! time on x86-64 and aarch64 (some small processors differ).

/// More columns than this are halved first: a product costs far more than the additions that save it.
pub(super) const LEAF_COLUMNS: usize = 4;

const STRIDE: usize = 5;

/// `MASKS[i]`: every bit whose place is `i` modulo 5.
const MASKS: [u128; STRIDE] = {
    let mut every_fifth: u128 = 1;
    let mut bit = STRIDE;
    while bit < 128 {
        every_fifth |= 1 << bit;
        bit += STRIDE;
    }
    [every_fifth, every_fifth << 1, every_fifth << 2, every_fifth << 3, every_fifth << 4]
};

/// The bits of `word` in five classes by their place modulo 5.
#[expect(clippy::cast_possible_truncation, reason = "the lower half of each mask is meant")]
fn spread(word: u64) -> [u128; STRIDE] {
    MASKS.map(|mask| u128::from(word & mask as u64))
}

/// Sets `columns[c]` to the XOR over `j` of the carry-less `t[c + j] * x[j]`.
pub(super) fn correlate(t: &[u64], x: &[u64], columns: &mut [u128]) {
    for (offset, column) in columns.iter_mut().enumerate() {
        let mut classes = [0_u128; STRIDE];
        for (a, b) in t.get(offset..).unwrap_or_default().iter().zip(x) {
            accumulate(&mut classes, spread(*a), spread(*b));
        }
        // Carries outside the class are masked away once, at the end: masking commutes with XOR.
        *column = classes.iter().zip(MASKS).fold(0, |sum, (class, mask)| sum | (class & mask));
    }
}

/// Adds the product of `a` and `b`, both spread, to the class sums: place i times place j goes to i + j.
fn accumulate(classes: &mut [u128; STRIDE], a: [u128; STRIDE], b: [u128; STRIDE]) {
    let [a0, a1, a2, a3, a4] = a;
    let [b0, b1, b2, b3, b4] = b;
    let [c0, c1, c2, c3, c4] = classes;
    let times = u128::wrapping_mul;
    *c0 ^= times(a0, b0) ^ times(a1, b4) ^ times(a2, b3) ^ times(a3, b2) ^ times(a4, b1);
    *c1 ^= times(a0, b1) ^ times(a1, b0) ^ times(a2, b4) ^ times(a3, b3) ^ times(a4, b2);
    *c2 ^= times(a0, b2) ^ times(a1, b1) ^ times(a2, b0) ^ times(a3, b4) ^ times(a4, b3);
    *c3 ^= times(a0, b3) ^ times(a1, b2) ^ times(a2, b1) ^ times(a3, b0) ^ times(a4, b4);
    *c4 ^= times(a0, b4) ^ times(a1, b3) ^ times(a2, b2) ^ times(a3, b1) ^ times(a4, b0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masks_split_a_column_into_five_classes() {
        for (class, mask) in MASKS.iter().enumerate() {
            let expected = (class..128).step_by(STRIDE).fold(0_u128, |sum, bit| sum | 1 << bit);
            assert_eq!(*mask, expected);
        }
    }

    #[test]
    fn a_product_is_right_where_most_ones_meet() {
        for (a, b) in [(u64::MAX, u64::MAX), (u64::MAX, 1 << 63), (1, u64::MAX), (0, u64::MAX)] {
            let mut expected = 0;
            for bit in 0..64 {
                expected ^= u128::from(a * (b >> bit & 1)) << bit;
            }
            let mut column = [0];
            correlate(&[a], &[b], &mut column);
            assert_eq!(column, [expected]);
        }
    }
}
