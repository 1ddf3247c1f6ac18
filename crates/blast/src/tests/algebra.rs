//! Linearity, zero, order of pools, and nothing printable.

use super::super::extract::extract;
use super::*;

fn extracted(pools: &[OwnedPool], product: Product) -> Vec<u8> {
    extract(product, &borrowed(pools), &seeds(3).seed, 180, 48).to_vec()
}

#[test]
fn the_extractor_is_linear_in_the_pools_on_every_product() {
    let one = pools(3, 1 << 14);
    let mut other = pools(6, 1 << 14).split_off(3);
    let mut both = pools(3, 1 << 14);
    for ((sum, other), one) in both.iter_mut().zip(&mut other).zip(&one) {
        other.id = one.id;
        for (sum, word) in sum.words.iter_mut().zip(&other.words) {
            *sum ^= word;
        }
    }
    for product in Product::available() {
        let (a, b) = (extracted(&one, product), extracted(&other, product));
        let sum: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
        assert_ne!(a, b);
        assert_eq!(extracted(&both, product), sum, "{}", product.name());
    }
}

#[test]
fn zero_pools_give_zero_on_every_product() {
    let mut zero = pools(3, 1 << 14);
    for pool in &mut zero {
        pool.words.fill(0);
    }
    for product in Product::available() {
        assert_eq!(extracted(&zero, product), [0; 48], "{}", product.name());
    }
}

#[test]
fn the_order_of_the_pools_is_bound() {
    let mut pools = pools(3, 1 << 14);
    let before = two_keys(&borrowed(&pools));
    pools.swap(0, 2);
    let after = two_keys(&borrowed(&pools));
    assert_ne!(before.confirm, after.confirm);
    assert_ne!(bytes_of(&before.keys), bytes_of(&after.keys));
}

#[test]
fn pool_ids_and_both_seeds_are_bound() {
    let mut pools = pools(2, 1 << 14);
    let base = two_keys(&borrowed(&pools));
    let other_mask = BatchSeeds { mask_seed: Seed::copy_of(&[1; 32]).unwrap(), ..seeds(9) };
    let masked = generate_with(Product::detect(), &borrowed(&pools), &other_mask, 32, &key_ids(2)).unwrap();
    assert_eq!(masked.confirm, base.confirm, "the mask is no part of the confirmation value");
    assert_ne!(bytes_of(&masked.keys), bytes_of(&base.keys));
    pools[1].id = PoolId::from_bytes([0xee; 16]);
    assert_ne!(two_keys(&borrowed(&pools)).confirm, base.confirm);
}

#[test]
fn no_secret_of_a_batch_is_printable() {
    let pools = pools(2, 1 << 14);
    let pools = borrowed(&pools);
    let batch = two_keys(&pools);
    let seeds = seeds(0xab);
    let printed = format!("{batch:?} {seeds:?} {pools:?} {:?}", batch.confirm);
    assert!(!printed.contains(&hex::encode(batch.confirm.as_bytes())));
    let decimals = |bytes: &[u8]| {
        let inner: Vec<_> = bytes.iter().take(4).map(u8::to_string).collect();
        inner.join(", ")
    };
    for bytes in [batch.keys[0].material.expose(), batch.confirm.as_bytes(), seeds.seed.expose()] {
        assert!(!printed.contains(&decimals(bytes)), "{printed}");
        assert!(!printed.contains(&hex::encode(&bytes[..4])), "{printed}");
    }
    for word in &pools[0].words[..4] {
        assert!(!printed.contains(&word.to_string()) && !printed.contains(&format!("{word:x}")));
    }
    for shown in ["Seed(32 bytes)", "Confirm(16 bytes)", "16384 words"] {
        assert!(printed.contains(shown), "{shown} not in {printed}");
    }
}
