//! Speed of the store's verbs, each with its durable commit. On SQLite in a temporary folder (`TMPDIR` chooses the disk),
//! and on Postgres if `DQKD_BENCH_POSTGRES` has the URL of an empty database.
//!
//! `retrieve/64 callers` is 64 concurrent requests for one key each, as `dec_keys` makes under load. The writer puts those
//! that wait into one commit.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that cannot be set up must stop")]

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use dqkd::store::{
    ContentDigest, Entitlement, KeyEncryptionKeys, NewBatch, ReadyPair, Retrieval, RetrievalMode,
    ReturnedBlock, Role, Store, StoreSettings,
};
use futures_util::future::join_all;
use kme::{
    BatchId, Clock as _, Key, KeyId, KeyMaterial, KmeId, OsRandom, Party, Random as _, Recipient, SaeId,
    SecretBytes, SourceGrade, SystemClock,
};
use tokio::runtime::Runtime;

const LIFE: Duration = Duration::from_hours(24);
/// Keys of a batch: as many as a full batch of 256-bit keys has.
const BATCH: usize = 64;

/// A site whose SAE bob retrieves, and whose SAE bob is also the master of ready keys.
struct Bench {
    store: Store,
    runtime: Runtime,
    site_a: KmeId,
    site_b: KmeId,
    alice: SaeId,
    bob: SaeId,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn open(url: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bench.kek");
        KeyEncryptionKeys::create_file(&file, &OsRandom).unwrap();
        let keks = KeyEncryptionKeys::from_file(&file).unwrap();
        let own = format!("sqlite://{}", dir.path().join("bench.db").display());
        let kme = "site-b".parse().unwrap();
        let settings = StoreSettings { url: url.unwrap_or(&own).to_owned(), kme, keks, migrate: true };
        let runtime = Runtime::new().unwrap();
        let store = Store::open(settings, Arc::new(SystemClock), Arc::new(OsRandom));
        let store = runtime.block_on(store).unwrap();
        let (site_a, site_b) = ("site-a".parse().unwrap(), "site-b".parse().unwrap());
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        Self { store, runtime, site_a, site_b, alice, bob, _dir: dir }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn batch() -> (BatchId, Vec<Key>) {
        let key = |id| {
            let mut bytes = SecretBytes::zeroed(32);
            OsRandom.fill(bytes.expose_mut()).unwrap();
            Key { id, material: KeyMaterial::new(bytes) }
        };
        let keys = KeyId::draw_batch(BATCH, &OsRandom).unwrap().into_iter().map(key).collect();
        (BatchId::draw(&OsRandom).unwrap(), keys)
    }

    /// A batch of alice's for bob, as site-b stores it.
    async fn insert(&self, (batch_id, keys): &(BatchId, Vec<Key>)) {
        let recipients = [Recipient { party: Party::Sae(self.bob.clone()), kme: self.site_b.clone() }];
        let entitled = [Entitlement { party: Party::Sae(self.bob.clone()), role: Role::Slave }];
        let batch = NewBatch {
            batch_id: *batch_id,
            source: &self.site_a,
            master: &self.alice,
            recipients: &recipients,
            entitled: &entitled,
            content: ContentDigest([7; 32]),
            created_at: SystemClock.now(),
            expires_at: SystemClock.now().plus(LIFE),
            copy_ends_at: None,
            keys,
        };
        self.store.insert_batches(std::slice::from_ref(&batch)).await.unwrap();
    }

    fn recipient(&self) -> Recipient {
        Recipient { party: Party::Sae(self.alice.clone()), kme: self.site_a.clone() }
    }

    fn grade() -> SourceGrade {
        SourceGrade { entropy_sources: BTreeSet::from(["os".to_owned()]), pools: 3, hybrid_tls: true }
    }

    /// A ready batch of bob's for alice, as site-b stores it.
    async fn insert_ready(&self, (batch_id, keys): &(BatchId, Vec<Key>)) {
        let recipients = [self.recipient()];
        let entitled = [Entitlement { party: Party::Sae(self.bob.clone()), role: Role::Master }];
        let batch = NewBatch {
            batch_id: *batch_id,
            source: &self.site_b,
            master: &self.bob,
            recipients: &recipients,
            entitled: &entitled,
            content: ContentDigest([7; 32]),
            created_at: SystemClock.now(),
            expires_at: SystemClock.now().plus(LIFE),
            copy_ends_at: None,
            keys,
        };
        let until = SystemClock.now().plus(LIFE / 2);
        self.store.insert_ready(std::slice::from_ref(&batch), &Self::grade(), until).await.unwrap();
    }

    async fn retrieve(&self, key_ids: &[KeyId]) {
        let path = Party::Sae(self.alice.clone());
        let retrieval = Retrieval {
            caller: &self.bob,
            local: &self.site_b,
            path: &path,
            key_ids,
            mode: RetrievalMode::Once,
            replay_window: Duration::ZERO,
            patience: Duration::from_secs(10),
        };
        assert_eq!(self.store.retrieve(&retrieval).await.unwrap().len(), key_ids.len());
    }

    /// IDs of a batch that is stored.
    fn stored(&self) -> Vec<KeyId> {
        let batch = Self::batch();
        self.run(self.insert(&batch));
        batch.1.iter().map(|key| key.id).collect()
    }

    fn lease(&self, blocks: u32) -> usize {
        let recipient = self.recipient();
        let pair = ReadyPair { master: &self.bob, recipient: &recipient };
        let leased = self.run(self.store.lease(pair, blocks, LIFE)).unwrap();
        leased.iter().map(|block| block.keys.len()).sum()
    }

    fn stock_ready(&self, blocks: u32) {
        (0..blocks).for_each(|_| self.run(self.insert_ready(&Self::batch())));
    }

    fn give_back(&self) {
        let recipient = self.recipient();
        let pair = ReadyPair { master: &self.bob, recipient: &recipient };
        let blocks = self.run(self.store.lease(pair, 1, LIFE)).unwrap();
        let returned = ReturnedBlock {
            batch_id: blocks[0].batch_id,
            source: &self.site_b,
            pair,
            entitled: &blocks[0].entitled,
            created_at: blocks[0].created_at,
            usable_until: blocks[0].usable_until,
            provenance: &blocks[0].provenance,
            keys: &blocks[0].keys,
        };
        self.run(self.store.give_back(&[returned])).unwrap();
    }
}

fn verbs(criterion: &mut Criterion) {
    let postgres = std::env::var("DQKD_BENCH_POSTGRES").ok();
    let databases = [("sqlite", Some(None)), ("postgres", postgres.as_deref().map(Some))];
    for (name, url) in databases {
        let Some(url) = url else { continue };
        let mut group = criterion.benchmark_group(name);
        group.sample_size(30).measurement_time(Duration::from_secs(4));
        let bench = Bench::open(url);
        insertions(&mut group, &bench);
        leases(&mut group, &bench);
        retrievals(&mut group, &bench);
        bench.run(bench.store.close());
    }
}

fn insertions(group: &mut BenchmarkGroup<'_, WallTime>, bench: &Bench) {
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("insert_batch/64 keys", |bencher| {
        let insert = |batch| bench.run(bench.insert(&batch));
        bencher.iter_batched(Bench::batch, insert, BatchSize::PerIteration);
    });
    group.bench_function("insert_batch/16 callers x 64 keys", |bencher| {
        let batches = || (0..16).map(|_| Bench::batch()).collect::<Vec<_>>();
        let insert = |batches: Vec<_>| bench.run(join_all(batches.iter().map(|batch| bench.insert(batch))));
        bencher.iter_batched(batches, insert, BatchSize::PerIteration);
    });
    group.bench_function("insert_ready/64 keys", |bencher| {
        let insert = |batch| bench.run(bench.insert_ready(&batch));
        bencher.iter_batched(Bench::batch, insert, BatchSize::PerIteration);
    });
    group.bench_function("void/64 keys", |bencher| {
        let stored = || {
            let batch = Bench::batch();
            bench.run(bench.insert(&batch));
            batch.0
        };
        let expires_at = SystemClock.now().plus(LIFE);
        let void = |batch_id| bench.run(bench.store.void(&bench.site_a, batch_id, &[], expires_at)).unwrap();
        bencher.iter_batched(stored, void, BatchSize::PerIteration);
    });
}

fn leases(group: &mut BenchmarkGroup<'_, WallTime>, bench: &Bench) {
    for blocks in [1, 16] {
        group.throughput(Throughput::Elements(u64::from(blocks) * BATCH as u64));
        group.bench_function(format!("lease/{blocks} x 64 keys"), |bencher| {
            let lease = |()| assert_eq!(bench.lease(blocks), blocks as usize * BATCH);
            bencher.iter_batched(|| bench.stock_ready(blocks), lease, BatchSize::PerIteration);
        });
    }
    group.throughput(Throughput::Elements(BATCH as u64));
    bench.stock_ready(1);
    group.bench_function("lease and give_back/64 keys", |bencher| bencher.iter(|| bench.give_back()));
    let recipient = bench.recipient();
    let pair = ReadyPair { master: &bench.bob, recipient: &recipient };
    group.throughput(Throughput::Elements(1));
    group.bench_function("ready_count", |bencher| {
        bencher.iter(|| bench.run(bench.store.ready_count(pair)).unwrap());
    });
}

fn retrievals(group: &mut BenchmarkGroup<'_, WallTime>, bench: &Bench) {
    group.throughput(Throughput::Elements(1));
    group.bench_function("retrieve/1 key", |bencher| {
        let retrieve = |ids: Vec<KeyId>| bench.run(bench.retrieve(&ids[..1]));
        bencher.iter_batched(|| bench.stored(), retrieve, BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("retrieve/64 keys", |bencher| {
        let retrieve = |ids: Vec<KeyId>| bench.run(bench.retrieve(&ids));
        bencher.iter_batched(|| bench.stored(), retrieve, BatchSize::PerIteration);
    });
    group.bench_function("retrieve/64 callers", |bencher| {
        let retrieve = |ids: Vec<KeyId>| {
            let calls = ids.chunks(1).map(|id| bench.retrieve(id));
            bench.run(join_all(calls))
        };
        bencher.iter_batched(|| bench.stored(), retrieve, BatchSize::PerIteration);
    });
    // Each key of another batch, among a hundred thousand.
    let mut stock: Vec<Vec<KeyId>> = Vec::new();
    group.bench_function("retrieve/64 callers, random keys", |bencher| {
        let random = || {
            if stock.iter().map(Vec::len).sum::<usize>() < 20_000 {
                stock.extend((0..1_600).map(|_| bench.stored()));
            }
            let mut picked = Vec::with_capacity(BATCH);
            while picked.len() < BATCH {
                let mut draw = [0; 8];
                OsRandom.fill(&mut draw).unwrap();
                let at = usize::try_from(u64::from_be_bytes(draw) % stock.len() as u64).unwrap();
                picked.extend(stock[at].pop());
            }
            picked
        };
        let retrieve = |ids: Vec<KeyId>| {
            let calls = ids.chunks(1).map(|id| bench.retrieve(id));
            bench.run(join_all(calls))
        };
        bencher.iter_batched(random, retrieve, BatchSize::PerIteration);
    });
}

criterion_group!(store, verbs);
criterion_main!(store);
