//! Storing batches, one or several at once: idempotence and conflicts.

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

/// Stores batches in one call.
async fn insert_all(store: &Store, batches: &[&Sample]) -> Result<Inserted, StoreError> {
    let batches: Vec<NewBatch<'_>> = batches.iter().map(|batch| batch.as_new(START.plus(HOUR))).collect();
    store.insert_batches(&batches).await
}

#[tokio::test]
async fn of_several_batches_none_is_stored_if_one_is_refused() {
    let site = site!();
    let store = site.open().await;
    let here = Sample::to_bob(2).stored(&store).await;
    let voided = Sample::to_bob(2).stored(&store).await;
    let expires_at = START.plus(HOUR);
    store.void(&voided.source, voided.batch_id, &[], expires_at).await.unwrap();
    let void_came_first = Sample::to_bob(2);
    store.void(&void_came_first.source, void_came_first.batch_id, &[], expires_at).await.unwrap();
    let mut other_content = Sample::to_bob(2);
    other_content.batch_id = here.batch_id;
    other_content.content = ContentDigest([8; 32]);
    let with_known_key = Sample::to_bob(1).beside(&here).with(here.ids()[0]);
    let (first, last) = (Sample::to_bob(3), Sample::to_bob(4));
    let with_key_of_first = Sample::to_bob(1).beside(&first).with(first.ids()[2]);
    let mut named_like_first = Sample::to_bob(2);
    named_like_first.batch_id = first.batch_id;
    named_like_first.content = ContentDigest([8; 32]);

    let before = counts(&store).await;
    for (bad, why, told) in [
        (&other_content, Inserted::Conflict, "a batch ID of the store"),
        (&with_known_key, Inserted::Conflict, "a key ID of the store"),
        (&voided, Inserted::Voided, "voided here"),
        (&void_came_first, Inserted::Voided, "voided before it came"),
        (&with_key_of_first, Inserted::Conflict, "a key ID of the same call"),
        (&named_like_first, Inserted::Conflict, "a batch ID of the same call"),
    ] {
        for batches in [[&first, bad, &last], [&first, &last, bad]] {
            assert_eq!(insert_all(&store, &batches).await.unwrap(), why, "{told}");
            assert_eq!(counts(&store).await, before, "{told}: something was stored");
        }
    }
    Ask::by("bob").finds_nothing(&store, &first.ids()).await;
    assert_eq!(insert_all(&store, &[&first, &last]).await.unwrap(), Inserted::Stored);
    for batch in [&first, &last, &here] {
        Ask::by("bob").gets(&store, &batch.ids()).await;
    }
}

#[tokio::test]
async fn of_several_batches_those_that_are_here_already_change_nothing_and_the_others_are_stored() {
    let site = site!();
    let store = site.open().await;
    let old = Sample::to_bob(2).stored(&store).await;
    Ask::by("bob").gets(&store, &old.ids()).await;
    let (new, newer) = (Sample::to_bob(3), Sample::to_bob(4));
    assert_eq!(insert_all(&store, &[&old, &new]).await.unwrap(), Inserted::Stored);
    assert_eq!(counts(&store).await, Counts { batches: 2, keys: 3 });
    assert_eq!(insert_all(&store, &[&new, &old]).await.unwrap(), Inserted::AlreadyStored);
    assert_eq!(
        insert_all(&store, &[&newer, &old, &newer]).await.unwrap(),
        Inserted::Stored,
        "twice in a call"
    );
    assert_eq!(counts(&store).await, Counts { batches: 3, keys: 7 });
    Ask::by("bob").finds_nothing(&store, &old.ids()).await;
    Ask::by("bob").gets(&store, &new.ids()).await;
    Ask::by("bob").gets(&store, &newer.ids()).await;
}

#[tokio::test]
async fn one_call_stores_at_least_one_batch_at_most_so_many_and_of_one_prefix_no_more_than_eight() {
    let site = site!();
    let store = site.open().await;
    let samples: Vec<Sample> = (0..=MAX_BATCHES_PER_INSERT).map(|_| Sample::to_bob(1)).collect();
    let all: Vec<&Sample> = samples.iter().collect();
    for wrong in [&all[..0], &all[..]] {
        let refused = insert_all(&store, wrong).await.unwrap_err();
        assert!(matches!(refused, StoreError::Misuse(_)), "{refused}");
    }
    let beside: Vec<Sample> = (0..9).map(|_| Sample::to_bob(1).beside(&samples[0])).collect();
    let beside: Vec<&Sample> = beside.iter().collect();
    assert_eq!(insert_all(&store, &beside).await.unwrap(), Inserted::Conflict);
    assert_eq!(counts(&store).await, Counts::default());
    assert_eq!(insert_all(&store, &all[1..]).await.unwrap(), Inserted::Stored);
    let most = MAX_BATCHES_PER_INSERT as u64;
    assert_eq!(counts(&store).await, Counts { batches: most, keys: most });
    for batch in &all[1..] {
        Ask::by("bob").gets(&store, &batch.ids()).await;
    }
}

#[tokio::test]
async fn several_batches_of_ready_keys_can_be_leased_at_once_or_none_of_them() {
    let site = site!();
    let store = site.open().await;
    let here = Sample::to_bob(2).stored(&store).await;
    let (one, other) = (Sample::to_bob(3), Sample::to_bob(4));
    let bad = Sample::to_bob(1).beside(&here).with(here.ids()[0]);
    let new = |batch| Sample::as_new(batch, START.plus(HOUR));
    let recipient = Recipient { party: to_sae("bob"), kme: kme("site-b") };
    let pair = ReadyPair { master: &sae("alice"), recipient: &recipient };
    let until = START.plus(HALF);
    let insert = async |batches: &[NewBatch<'_>]| store.insert_ready(batches, &grade(), until).await.unwrap();
    assert_eq!(insert(&[new(&one), new(&bad)]).await, Inserted::Conflict);
    assert_eq!(store.ready_count(pair).await.unwrap(), 0);
    assert_eq!(insert(&[new(&one), new(&other)]).await, Inserted::Stored);
    assert_eq!(store.ready_count(pair).await.unwrap(), 7);
    let leased = store.lease(pair, 2, HOUR).await.unwrap();
    let leased: HashSet<KeyId> = leased.iter().flat_map(|block| &block.keys).map(|key| key.id).collect();
    assert_eq!(leased, one.ids().into_iter().chain(other.ids()).collect());
}
