//! How an order is split into batches.

use super::intake::BATCHES_PER_PUSH_MAX;

/// Most bits of one delivery: no more than the longest single batch has.
const DELIVERY_BITS: u64 = 1 << 17;

/// Splits an order into deliveries. A delivery is a list of batches, given by their numbers of keys, which are
/// made of one pool set, pushed together and stored together. It has at most `most_bits`, unless it is a single
/// batch. `None` for a key too long for any batch.
pub(super) fn deliveries(number: usize, key_bytes: usize, most_bits: u64) -> Option<Vec<Vec<usize>>> {
    let batches = split(number, key_bytes)?;
    Some(batches.chunks(per_delivery(key_bytes, most_bits)).map(<[_]>::to_vec).collect())
}

/// Keys of the largest delivery.
pub(super) fn keys_per_delivery(key_bytes: usize, most_bits: u64) -> u64 {
    (per_delivery(key_bytes, most_bits) * blast::max_keys_per_batch(key_bytes).max(1)) as u64
}

/// Batches of one delivery.
fn per_delivery(key_bytes: usize, most_bits: u64) -> usize {
    let largest = blast::output_bits(key_bytes, blast::max_keys_per_batch(key_bytes)).unwrap_or(u64::MAX);
    let fit = most_bits.min(DELIVERY_BITS) / largest.max(1);
    usize::try_from(fit).unwrap_or(1).clamp(1, BATCHES_PER_PUSH_MAX)
}

/// Numbers of keys of the batches that make `number` keys of `key_bytes` bytes, as large as the engine
/// allows; `None` for a key too long for any batch.
fn split(number: usize, key_bytes: usize) -> Option<Vec<usize>> {
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
        assert_eq!(deliveries(300, 32, u64::MAX), Some(vec![vec![64; 4], vec![44]]));
        assert_eq!(deliveries(128, 32, 1), Some(vec![vec![64], vec![64]]), "small pool sets");
        assert_eq!(deliveries(2, 16_368, u64::MAX), Some(vec![vec![1], vec![1]]), "long keys");
        assert_eq!(keys_per_delivery(32, u64::MAX), 256);
        assert_eq!(split(1, 16_369), None);
        assert_eq!(split(128, 32), Some(vec![64, 64]));
    }
}
