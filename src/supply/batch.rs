//! How an order is cut into batches, and what one batch costs.

use crate::blast;

/// Numbers of keys of the batches that make `number` keys of `key_bytes` bytes, as large as the engine
/// allows; `None` for a key too long for any batch.
pub(super) fn split(number: usize, key_bytes: usize) -> Option<Vec<usize>> {
    let most = blast::max_keys_per_batch(key_bytes);
    if most == 0 {
        return None;
    }
    let full = std::iter::repeat_n(most, number / most);
    Some(full.chain(Some(number % most).filter(|rest| *rest > 0)).collect())
}

/// How many keys of `key_bytes` bytes `bits` of budget give, in batches as large as possible.
pub(super) fn keys_from_bits(bits: u64, key_bytes: usize) -> u32 {
    let most = blast::max_keys_per_batch(key_bytes);
    let Ok(full_bits) = blast::output_bits(key_bytes, most) else { return 0 };
    let full_batches = bits / full_bits;
    let key_bits = key_bytes as u64 * 8;
    let rest = (bits % full_bits).saturating_sub(blast::CONFIRM_BITS) / key_bits;
    u32::try_from(full_batches.saturating_mul(most as u64).saturating_add(rest)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_and_each_fits_the_engine() {
        for key_bytes in [1, 32, 200, 256, 1000, 8192, 16_368] {
            for number in [1, 2, 63, 64, 65, 128, 1024] {
                let batches = split(number, key_bytes).unwrap();
                assert_eq!(batches.iter().sum::<usize>(), number);
                for count in &batches {
                    assert!(blast::output_bits(key_bytes, *count).is_ok(), "{count} of {key_bytes}");
                }
            }
        }
        assert_eq!(split(1, 16_369), None);
        assert_eq!(split(128, 32), Some(vec![64, 64]));
    }

    #[test]
    fn a_budget_gives_the_keys_that_its_batches_can_spend() {
        let one = blast::output_bits(32, 1).unwrap();
        assert_eq!(keys_from_bits(one - 1, 32), 0);
        assert_eq!(keys_from_bits(one, 32), 1);
        let full = blast::output_bits(32, 64).unwrap();
        assert_eq!(keys_from_bits(full, 32), 64);
        assert_eq!(keys_from_bits(full + one - 1, 32), 64);
        assert_eq!(keys_from_bits(full + one, 32), 65);
        assert_eq!(keys_from_bits(u64::MAX, 32), u32::MAX);
    }
}
