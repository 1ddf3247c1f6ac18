//! Carry-less multiplication by the processor: PCLMULQDQ, and VPCLMULQDQ where present.
//!
//! The only file of the engine with `unsafe`, for two things: calls of functions that are compiled for more than the
//! baseline processor, and unaligned vector loads. Nothing else belongs here.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_setzero_si128,
    _mm_unpackhi_epi64, _mm_xor_si128, _mm256_castsi256_si128, _mm256_clmulepi64_epi128,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_xor_si256,
};

/// Column sums that fit into the 16 vector registers beside the operands. Nine, because batches of 16 and 64 keys of
/// 256 bits halve exactly to nine columns.
pub(super) const LEAF_COLUMNS: usize = 9;

/// A carry-less multiplier of this processor. The value proves that the processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    wide: bool,
}

impl Unit {
    /// The multipliers of this processor, the fastest last.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        let narrow = is_x86_feature_detected!("pclmulqdq");
        let wide = is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx2");
        let narrow = narrow.then_some(Self { wide: false });
        narrow.into_iter().chain(wide.then_some(Self { wide: true }))
    }

    pub(super) const fn name(self) -> &'static str {
        if self.wide { "vpclmulqdq" } else { "pclmulqdq" }
    }

    /// Sets `columns[c]` to the XOR over `j` of `t[c + j] * x[j]`.
    ///
    /// The length of `x` must be a multiple of four; `t` must have `x.len() + columns.len() - 1` words.
    #[expect(unsafe_code, reason = "calls functions compiled for the features that this value proves")]
    pub(super) fn correlate(self, t: &[u64], x: &[u64], columns: &mut [u128]) {
        if self.wide {
            // SAFETY: `wide` is set by `available` only, after it saw avx2 and vpclmulqdq.
            unsafe { correlate_wide(t, x, columns) }
        } else {
            // SAFETY: a `Unit` with `wide` unset comes from `available` only, after it saw pclmulqdq.
            unsafe { correlate_narrow(t, x, columns) }
        }
    }
}

/// Runs `$leaf::<C>` over groups of at most nine columns.
macro_rules! by_column_count {
    ($leaf:ident, $t:ident, $x:ident, $columns:ident) => {
        let mut rest = $t;
        for group in $columns.chunks_mut(LEAF_COLUMNS) {
            let sums: &mut [u128] = group;
            match sums.len() {
                1 => $leaf::<1>(rest, $x, sums),
                2 => $leaf::<2>(rest, $x, sums),
                3 => $leaf::<3>(rest, $x, sums),
                4 => $leaf::<4>(rest, $x, sums),
                5 => $leaf::<5>(rest, $x, sums),
                6 => $leaf::<6>(rest, $x, sums),
                7 => $leaf::<7>(rest, $x, sums),
                8 => $leaf::<8>(rest, $x, sums),
                _ => $leaf::<9>(rest, $x, sums),
            }
            rest = rest.get(LEAF_COLUMNS..).unwrap_or_default();
        }
    };
}

#[target_feature(enable = "pclmulqdq")]
fn correlate_narrow(t: &[u64], x: &[u64], columns: &mut [u128]) {
    by_column_count!(leaf_narrow, t, x, columns);
}

#[target_feature(enable = "avx2,vpclmulqdq")]
fn correlate_wide(t: &[u64], x: &[u64], columns: &mut [u128]) {
    by_column_count!(leaf_wide, t, x, columns);
}

#[inline]
#[target_feature(enable = "pclmulqdq")]
#[expect(
    unsafe_code,
    clippy::cast_ptr_alignment,
    reason = "unaligned loads at places checked against both lengths before the loop"
)]
fn leaf_narrow<const C: usize>(t: &[u64], x: &[u64], columns: &mut [u128]) {
    let groups = x.len() / 2;
    assert!(t.len() + 1 >= 2 * groups + C, "t is shorter than x and the columns together");
    let mut sums = [_mm_setzero_si128(); C];
    for group in 0..groups {
        // SAFETY: reads words 2 * group and 2 * group + 1 of x, and 2 * group + 1 < 2 * groups <= x.len().
        let b = unsafe { _mm_loadu_si128(x.as_ptr().add(2 * group).cast::<__m128i>()) };
        for (offset, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the last word read is 2 * group + offset + 1 <= 2 * (groups - 1) + (C - 1) + 1
            // = 2 * groups + C - 2, which is below t.len() by the assertion above.
            let a = unsafe { _mm_loadu_si128(t.as_ptr().add(2 * group + offset).cast::<__m128i>()) };
            *sum = _mm_xor_si128(*sum, _mm_clmulepi64_si128::<0x00>(a, b));
            *sum = _mm_xor_si128(*sum, _mm_clmulepi64_si128::<0x11>(a, b));
        }
    }
    for (column, sum) in columns.iter_mut().zip(sums) {
        *column = to_u128(sum);
    }
}

#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
#[expect(
    unsafe_code,
    clippy::cast_ptr_alignment,
    reason = "unaligned loads at places checked against both lengths before the loop"
)]
fn leaf_wide<const C: usize>(t: &[u64], x: &[u64], columns: &mut [u128]) {
    let groups = x.len() / 4;
    assert!(t.len() + 1 >= 4 * groups + C, "t is shorter than x and the columns together");
    let mut sums = [_mm256_setzero_si256(); C];
    for group in 0..groups {
        // SAFETY: reads words 4 * group to 4 * group + 3 of x, and 4 * group + 3 < 4 * groups <= x.len().
        let b = unsafe { _mm256_loadu_si256(x.as_ptr().add(4 * group).cast::<__m256i>()) };
        for (offset, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the last word read is 4 * group + offset + 3 <= 4 * (groups - 1) + (C - 1) + 3
            // = 4 * groups + C - 2, which is below t.len() by the assertion above.
            let a = unsafe { _mm256_loadu_si256(t.as_ptr().add(4 * group + offset).cast::<__m256i>()) };
            *sum = _mm256_xor_si256(*sum, _mm256_clmulepi64_epi128::<0x00>(a, b));
            *sum = _mm256_xor_si256(*sum, _mm256_clmulepi64_epi128::<0x11>(a, b));
        }
    }
    for (column, sum) in columns.iter_mut().zip(sums) {
        *column = to_u128(_mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum)));
    }
}

#[inline]
#[target_feature(enable = "sse2")]
fn to_u128(vector: __m128i) -> u128 {
    let low = _mm_cvtsi128_si64(vector).cast_unsigned();
    let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(vector, vector)).cast_unsigned();
    u128::from(high) << 64 | u128::from(low)
}
