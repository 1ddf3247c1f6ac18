//! Speed of the engine: time of whole batches, with the throughput in keys of 256 bits.
//!
//! Each product of this processor, batches of 1, 16 and 64 keys, each from 2, 3 and 5 pools.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a bench that cannot be set up must stop")]

use std::hint::black_box;
use std::time::Duration;

use blast::{BatchSeeds, Product, SourcePool, generate_with};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kme::{KeyId, OsRandom, PoolId, Random as _, Seed};

/// 8 MiB for each pool: larger than a processor's cache share, as real pools are.
const POOL_WORDS: usize = 1 << 20;
const KEY_BYTES: usize = 32;

fn random_pool() -> (PoolId, Vec<u64>) {
    let mut bytes = vec![0; 8 * POOL_WORDS];
    OsRandom.fill(&mut bytes).expect("the generator works");
    let words = bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    (PoolId::draw(&OsRandom).expect("the generator works"), words)
}

fn batches(criterion: &mut Criterion) {
    let seed = || Seed::draw(&OsRandom).expect("the generator works");
    let owned: Vec<_> = (0..5).map(|_| random_pool()).collect();
    let pools: Vec<_> = owned.iter().map(|(id, words)| SourcePool { id: *id, words }).collect();
    let seeds = BatchSeeds { seed: seed(), mask_seed: seed() };
    let key_ids = KeyId::draw_batch(64, &OsRandom).expect("the generator works");

    let mut group = criterion.benchmark_group("generate");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let sizes = [2, 3, 5].into_iter().flat_map(|pools| [1, 16, 64].map(|keys| (pools, keys)));
    for (pool_count, key_count) in sizes {
        let (pools, key_ids) = (&pools[..pool_count], &key_ids[..key_count]);
        group.throughput(Throughput::Elements(key_count as u64));
        for product in Product::available() {
            let id = BenchmarkId::new(product.name(), format!("{pool_count}-pools/{key_count}-keys"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    generate_with(black_box(product), black_box(pools), &seeds, KEY_BYTES, key_ids)
                        .expect("the batch is within the limits")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, batches);
criterion_main!(benches);
