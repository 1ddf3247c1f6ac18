//! How an order is split into batches.

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
}
