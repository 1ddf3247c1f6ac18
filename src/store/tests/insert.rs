//! Storing batches: idempotence and conflicts.

use super::*;

#[tokio::test]
async fn the_same_content_again_changes_nothing_even_after_retrievals() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(3).stored(&store).await;
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::AlreadyStored);
    Ask::by("bob").gets(&store, &batch.ids()).await;
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::AlreadyStored);
    Ask::by("bob").finds_nothing(&store, &batch.ids()).await;
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 0 });
}

#[tokio::test]
async fn other_content_under_the_same_batch_id_is_a_conflict() {
    let site = site!();
    let store = site.open().await;
    let mut batch = Sample::to_bob(2).stored(&store).await;
    batch.content = ContentDigest([8; 32]);
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::Conflict);
    batch.content = ContentDigest([7; 32]);
    batch.source = kme("site-c");
    assert_eq!(batch.insert(&store).await.unwrap(), Inserted::Conflict);
}

#[tokio::test]
async fn a_key_id_in_use_is_a_conflict_and_stores_nothing_of_the_batch() {
    let site = site!();
    let store = site.open().await;
    let first = Sample::to_bob(2).stored(&store).await;
    let second = Sample::to_bob(2).beside(&first).with(first.ids()[1]);
    assert_eq!(second.insert(&store).await.unwrap(), Inserted::Conflict);
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 2 });
    Ask::by("bob").gets(&store, &first.ids()).await;
    assert_eq!(second.insert(&store).await.unwrap(), Inserted::Conflict, "also after it was retrieved");
}

#[tokio::test]
async fn batches_whose_ids_share_their_first_bytes_are_told_apart() {
    let site = site!();
    let store = site.open().await;
    let first = Sample::to_bob(3).stored(&store).await;
    let second = Sample::to(&[to_sae("carol")], 2).beside(&first).stored(&store).await;
    let third = Sample::to_bob(1).beside(&first);
    Ask::by("bob").finds_nothing(&store, &third.ids()).await;
    Ask::by("bob").is_not_entitled(&store, &second.ids()).await;
    Ask::by("carol").gets(&store, &second.ids()).await;
    Ask::by("bob").gets(&store, &first.ids()).await;
    third.stored(&store).await;
    assert_eq!(counts(&store).await, Counts { batches: 3, keys: 1 });
}

/// Whoever chooses key IDs that begin alike makes a retrieval read all these batches.
#[tokio::test]
async fn a_ninth_batch_whose_ids_begin_like_those_of_eight_others_is_a_conflict() {
    let site = site!();
    let store = site.open().await;
    let first = Sample::to_bob(2).stored(&store).await;
    for _ in 1..8 {
        Sample::to_bob(1).beside(&first).stored(&store).await;
    }
    let ninth = Sample::to_bob(1).beside(&first);
    assert_eq!(ninth.insert(&store).await.unwrap(), Inserted::Conflict);
    assert_eq!(first.insert(&store).await.unwrap(), Inserted::AlreadyStored, "a repeated push");
    Ask::by("bob").gets(&store, &first.ids()).await;
    Sample::to_bob(1).stored(&store).await;
    site.clock.advance(HOUR);
    while store.sweep(100).await.unwrap().any() {}
    assert_eq!(ninth.insert(&store).await.unwrap(), Inserted::Stored, "the others have expired");
}

#[tokio::test]
async fn batches_of_every_size_come_back_whole() {
    let site = site!();
    let store = site.open().await;
    for count in [1, 2, 127, 2000] {
        let batch = Sample::to_bob(count).stored(&store).await;
        let mut ids = batch.ids();
        ids.reverse();
        Ask::by("bob").gets(&store, &ids).await;
    }
}

#[tokio::test]
async fn a_malformed_batch_is_refused_as_misuse() {
    let site = site!();
    let store = site.open().await;
    let empty = Sample::to_bob(0);
    let mut twice = Sample::to_bob(1);
    let id = twice.keys[0].id;
    twice.keys.push(Key { id, material: material(id) });
    let mut uneven = Sample::to_bob(2);
    uneven.keys[1].material = KeyMaterial::new(SecretBytes::zeroed(16));
    let nobody = Sample::to(&[], 1);
    let mixed = Sample::to_bob(1).with(KeyId::draw(&OsRandom).unwrap());
    for batch in [empty, twice, uneven, nobody, mixed] {
        assert!(matches!(batch.insert(&store).await, Err(StoreError::Misuse(_))));
    }
    assert_eq!(counts(&store).await, Counts::default());
}

#[tokio::test]
async fn jobs_that_share_a_commit_do_not_fail_for_one_another() {
    let site = site!();
    let store = Arc::new(site.open().await);
    // A statement that fails inside the shared transaction, among good ones.
    let mut good = tokio::task::JoinSet::new();
    for index in 0..20 {
        let store = Arc::clone(&store);
        good.spawn(async move {
            if index == 10 {
                assert!(on_writer(&store, "INSERT INTO no_such_table VALUES (1)").await.is_err());
            } else {
                Sample::to_bob(2).stored(&store).await;
            }
        });
    }
    while let Some(result) = good.join_next().await {
        result.unwrap();
    }
    assert_eq!(counts(&store).await, Counts { batches: 19, keys: 38 });
}
