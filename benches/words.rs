//! Speed of what stands around a key on its way: sealing, the JSON of a container, the path of a request.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up must stop")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dqkd::http::sae::{Route, key_container};
use dqkd::store::{KeyEncryptionKeys, RecordSeal, Sealer};
use kme::{BatchId, Key, KeyId, KeyMaterial, OsRandom, Random as _, SecretBytes, Timestamp};
use qkd014::KeyContainer;

fn keys(count: usize) -> Vec<Key> {
    let key = |id| {
        let mut bytes = SecretBytes::zeroed(32);
        OsRandom.fill(bytes.expose_mut()).unwrap();
        Key { id, material: KeyMaterial::new(bytes) }
    };
    KeyId::draw_batch(count, &OsRandom).unwrap().into_iter().map(key).collect()
}

fn sealing(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bench.kek");
    KeyEncryptionKeys::create_file(&file, &OsRandom).unwrap();
    let keks = KeyEncryptionKeys::from_file(&file).unwrap();
    let (start, batch_id) = (Timestamp::from_ms(0), BatchId::draw(&OsRandom).unwrap());
    let sealer = Sealer::new(keks, "site-a".parse().unwrap(), Arc::new(OsRandom), start).unwrap();
    // A header of a thousand bytes, as a batch of 64 keys has it.
    let seal = |keys: &[Key]| {
        let (_, _, seal) = sealer.begin(batch_id, &[7; 1_000], keys.len(), start).unwrap();
        let mut slots = Vec::with_capacity(48 * keys.len());
        (0..).zip(keys).for_each(|(slot, key)| seal.seal(slot, key, &mut slots).unwrap());
        (seal, slots)
    };
    let open = |keys: &[Key], (seal, slots): &(RecordSeal, Vec<u8>)| {
        let slots = (0..).zip(keys).zip(slots.chunks_exact(48));
        slots.filter_map(|((slot, key), sealed)| seal.open(slot, key.id, sealed).unwrap()).count()
    };
    let mut group = criterion.benchmark_group("sealing");
    for count in [1, 64] {
        let keys = keys(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("seal/{count}"), |bencher| bencher.iter(|| seal(black_box(&keys))));
        let sealed = seal(&keys);
        assert_eq!(open(&keys, &sealed), count, "what is opened is genuine");
        group.bench_function(format!("open/{count}"), |bencher| {
            bencher.iter(|| open(&keys, black_box(&sealed)));
        });
    }
    group.finish();
}

fn containers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("container");
    for count in [1, 128] {
        let keys = keys(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("write/{count}"), |bencher| {
            bencher.iter(|| key_container(black_box(&keys)).unwrap());
        });
        let json = key_container(&keys).unwrap();
        group.bench_function(format!("read by the client/{count}"), |bencher| {
            bencher.iter(|| serde_json::from_slice::<KeyContainer>(black_box(&json)).unwrap());
        });
    }
    group.finish();
}

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, path) in [
        ("plain", "/api/v1/keys/bob/enc_keys"),
        ("escaped", "/api/v1/keys/a%2Fb%20%C3%A9%25/dec_keys"),
        ("no route", "/api/v1/keys/bob/enc_keys/more"),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Route::parse(black_box(path)).map(|route| (route.call, route.id().unwrap())));
        });
    }
    group.finish();
}

criterion_group!(words, sealing, containers, paths);
criterion_main!(words);
