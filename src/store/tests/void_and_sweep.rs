//! Voiding and sweeping.

use super::*;

async fn void(store: &Store, batch: &Sample, source: &str, ids: &[KeyId]) -> VoidOutcome {
    store.void(&kme(source), batch.batch_id, ids, START.plus(HOUR)).await.unwrap()
}

#[tokio::test]
async fn voided_keys_are_missing_and_retrieved_ones_are_kept() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(3).stored(&store).await;
    let ids = batch.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    let outcome = void(&store, &batch, "site-a", &ids[..2]).await;
    assert_eq!(outcome, VoidOutcome { voided: vec![ids[1]], kept: vec![ids[0]], ..VoidOutcome::default() });
    // Repeating it gives the same answer.
    assert_eq!(void(&store, &batch, "site-a", &ids[..2]).await, outcome);
    Ask::by("bob").finds_nothing(&store, &ids[1..2]).await;
    Ask::by("eve").finds_nothing(&store, &ids[1..2]).await;
    Ask::by("bob").gets(&store, &ids[2..]).await;
    assert_eq!(counts(&store).await.keys, 0);
}

#[tokio::test]
async fn a_key_that_one_of_two_slaves_has_is_kept_for_the_other() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to(&[to_sae("bob"), to_sae("carol")], 2).stored(&store).await;
    let ids = batch.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    let outcome = void(&store, &batch, "site-a", &[]).await;
    assert_eq!((outcome.voided, outcome.kept), (vec![ids[1]], vec![ids[0]]));
    Ask::by("carol").finds_nothing(&store, &ids[1..]).await;
    Ask::by("carol").gets(&store, &ids[..1]).await;
}

#[tokio::test]
async fn a_voided_batch_is_refused_when_it_comes_again() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(2).stored(&store).await;
    let mut outcome = void(&store, &batch, "site-a", &[]).await;
    outcome.voided.sort();
    let mut ids = batch.ids();
    ids.sort();
    assert_eq!(outcome, VoidOutcome { voided: ids.clone(), ..VoidOutcome::default() });
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::Voided);
    Ask::by("bob").finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn an_unknown_batch_leaves_a_tombstone_for_its_source_only() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(1);
    let ids = batch.ids();
    // Another KME's tombstone does not stop this source's batch.
    void(&store, &batch, "site-c", &ids).await;
    let other = Sample::to_bob(1);
    let outcome = void(&store, &other, "site-a", &other.ids()).await;
    assert_eq!((outcome.voided, outcome.tombstone), (other.ids(), Tombstone::Left));
    assert_eq!(other.insert(&store).await.unwrap(), Inserted::Voided);
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::Stored);
    site.clock.advance(HOUR);
    assert_eq!(store.sweep(100).await.unwrap().tombstones, 2);
}

#[tokio::test]
async fn a_void_that_may_leave_no_tombstone_voids_what_is_here_and_nothing_else() {
    let site = site!();
    let store = site.open().await;
    let (here, elsewhere) = (Sample::to_bob(2).stored(&store).await, Sample::to_bob(1));
    let outcome = store.void_stored(&here.source, here.batch_id, &[]).await.unwrap();
    assert_eq!((outcome.voided.len(), outcome.tombstone), (2, Tombstone::NotNeeded));
    let outcome = store.void_stored(&elsewhere.source, elsewhere.batch_id, &[]).await.unwrap();
    assert_eq!((outcome.voided.len(), outcome.tombstone), (0, Tombstone::NotAllowed));
    assert_eq!(elsewhere.insert(&store).await.unwrap(), Inserted::Stored);
}

#[tokio::test]
async fn only_the_source_voids_and_only_keys_of_that_batch() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(1).stored(&store).await;
    let other = Sample::to_bob(1).stored(&store).await;
    void(&store, &batch, "site-c", &[]).await;
    void(&store, &batch, "site-c", &batch.ids()).await;
    assert_eq!(void(&store, &batch, "site-a", &other.ids()).await, VoidOutcome::default());
    Ask::by("bob").gets(&store, &batch.ids()).await;
    Ask::by("bob").gets(&store, &other.ids()).await;
}

#[tokio::test]
async fn the_sweep_erases_expired_batches_in_bounded_chunks() {
    let site = site!();
    let store = site.open().await;
    for _ in 0..5 {
        Sample::to_bob(5).stored(&store).await;
    }
    assert!(!store.sweep(100).await.unwrap().any());
    site.clock.advance(HOUR);
    assert_eq!(store.sweep(3).await.unwrap(), Swept { batches: 3, ..Swept::default() });
    assert_eq!(store.sweep(3).await.unwrap(), Swept { batches: 2, data_keys: 1, ..Swept::default() });
    assert!(!store.sweep(3).await.unwrap().any());
    assert_eq!(counts(&store).await, Counts::default());
}

#[tokio::test]
async fn data_keys_without_records_are_swept_but_not_the_one_in_use() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    store.close().await;
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    assert!(!store.sweep(100).await.unwrap().any(), "both data keys have a live batch");
    site.clock.advance(HOUR);
    // The second would not seal any more: it is an hour old.
    assert_eq!(store.sweep(100).await.unwrap().data_keys, 2);
    // This one has expired when it comes.
    Sample::to_bob(1).stored(&store).await;
    assert_eq!(store.sweep(100).await.unwrap(), Swept { batches: 1, ..Swept::default() });
    assert_eq!(data_keys(&site).await, 1, "the one in use stays without a record");
}

/// A batch is sealed before its transaction begins. Meanwhile its data key may end, and go with its last record.
#[tokio::test]
async fn a_data_key_that_is_swept_while_a_batch_waits_comes_back_with_the_batch() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    site.clock.advance(Duration::from_mins(59));
    let sample = Sample::to_bob(2);
    let seal = async |batch: &NewBatch<'_>| {
        Insert::new(slice::from_ref(batch), None, &store.sealer, store.clock.now())
    };
    let waiting = sample.with_life(START.plus(3 * HOUR), seal).await.unwrap();
    site.clock.advance(HOUR);
    let swept = Swept { batches: 1, data_keys: 1, ..Swept::default() };
    assert_eq!(store.sweep(100).await.unwrap(), swept);
    assert_eq!(store.call(waiting).await.unwrap(), Inserted::Stored);
    Ask::by("bob").gets(&store, &sample.ids()[..1]).await;
    Ask::by("bob").gets(&site.open().await, &sample.ids()[1..]).await;
}

async fn data_keys(site: &Site) -> i64 {
    let mut link = site.sql().await;
    sqlx::query_scalar("SELECT count(*) FROM data_keys").fetch_one(&mut *link).await.unwrap()
}

/// Whoever gets a copy of the database and a data key reads the records of an hour.
#[tokio::test]
async fn every_hour_has_a_data_key_of_its_own_which_goes_with_its_last_record() {
    let site = site!();
    let store = site.open().await;
    let first = Sample::to_bob(1).stored(&store).await;
    site.clock.advance(Duration::from_mins(59));
    Sample::to_bob(1).stored(&store).await;
    assert_eq!(data_keys(&site).await, 1);
    site.clock.advance(Duration::from_mins(1));
    let until = START.plus(3 * HOUR);
    let second = Sample::to_bob(2);
    second.with_life(until, async |batch| store.insert_batch(batch).await).await.unwrap();
    assert_eq!(data_keys(&site).await, 2);
    Ask::by("bob").finds_nothing(&store, &first.ids()).await;
    Ask::by("bob").gets(&store, &second.ids()[..1]).await;
    store.sweep(100).await.unwrap();
    assert_eq!(data_keys(&site).await, 1, "the first hour is over");
    site.clock.advance(HOUR);
    store.sweep(100).await.unwrap();
    assert_eq!(data_keys(&site).await, 1, "it has a live record");
    Ask::by("bob").gets(&store, &second.ids()[1..]).await;
    site.clock.advance(HOUR);
    store.sweep(100).await.unwrap();
    assert_eq!(data_keys(&site).await, 0);
}
