//! Ready keys and leases.

use super::*;

fn bob() -> Recipient {
    Recipient { party: to_sae("bob"), kme: kme("site-b") }
}

async fn lease(store: &Store, blocks: u32) -> Vec<LeasedBlock> {
    store.lease(ReadyPair { master: &sae("alice"), recipient: &bob() }, blocks, HOUR).await.unwrap()
}

async fn count(store: &Store) -> u64 {
    store.ready_count(ReadyPair { master: &sae("alice"), recipient: &bob() }).await.unwrap()
}

fn ids_of(block: &LeasedBlock) -> HashSet<KeyId> {
    block.keys.iter().map(|key| key.id).collect()
}

fn set_of(ids: &[KeyId]) -> HashSet<KeyId> {
    ids.iter().copied().collect()
}

#[tokio::test]
async fn a_block_is_leased_once_whole_and_across_restarts() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(5).ready(&store, true).await;
    assert_eq!(count(&store).await, 5);
    let leased = lease(&store, 3).await;
    assert_eq!(leased.iter().map(ids_of).collect::<Vec<_>>(), [set_of(&sample.ids())]);
    for key in &leased[0].keys {
        assert!(key.material.ct_eq(&material(key.id)));
    }
    assert_eq!(leased[0].provenance.grade, grade());
    assert_eq!(count(&store).await, 0);
    assert!(lease(&store, 3).await.is_empty());
    store.close().await;
    let store = site.open().await;
    assert!(lease(&store, 3).await.is_empty(), "a restart does not forget a lease");
}

#[tokio::test]
async fn two_daemons_on_one_database_never_lease_the_same_block() {
    let site = site!();
    let (one, two) = (site.open().await, site.open().await);
    for _ in 0..20 {
        Sample::to_bob(2).ready(&one, true).await;
    }
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let (left, right) = tokio::join!(lease(&one, 1), lease(&two, 1));
        for block in left.into_iter().chain(right) {
            assert!(seen.insert(block.batch_id));
        }
    }
    assert_eq!(seen.len(), 20);
}

#[tokio::test]
async fn what_is_given_back_is_leased_again_and_what_was_handed_out_is_not() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(4).ready(&store, true).await;
    let leased = lease(&store, 1).await.pop().unwrap();
    let rest = &sample.ids()[1..];
    give_back(&store, leased, rest).await;
    assert_eq!(count(&store).await, 3);
    assert_eq!(ids_of(&lease(&store, 1).await[0]), set_of(rest));
}

#[tokio::test]
async fn a_key_that_was_voided_or_retrieved_while_it_was_ready_is_not_leased() {
    let site = site!();
    let store = site.open().await;
    let end = START.plus(HOUR);
    let voided = Sample::to_bob(4).ready(&store, true).await;
    let sample = Sample::to_bob(5).ready(&store, true).await;
    let other = Sample::to_bob(3).ready(&store, true).await;
    let retrieved = sample.ids()[3];
    store.void(&voided.source, voided.batch_id, &voided.ids()[..1], end).await.unwrap();
    let by_alice = Retrieval {
        caller: &sae("alice"),
        local: &sample.source,
        path: &to_sae("bob"),
        key_ids: &[retrieved],
        mode: RetrievalMode::Once,
        replay_window: Duration::ZERO,
        patience: HOUR,
    };
    assert_eq!(store.retrieve(&by_alice).await.unwrap().len(), 1);
    let left: HashSet<KeyId> = sample.ids().into_iter().filter(|id| *id != retrieved).collect();
    let leased: HashSet<KeyId> = lease(&store, 3).await.iter().flat_map(ids_of).collect();
    assert_eq!(leased, left.union(&set_of(&other.ids())).copied().collect());
}

#[tokio::test]
async fn where_nobody_may_retrieve_a_leased_key_its_material_leaves_the_store() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3).ready(&store, false).await;
    assert_eq!(counts(&store).await.keys, 3);
    let leased = lease(&store, 1).await.pop().unwrap();
    assert_eq!(counts(&store).await.keys, 0);
    let (batch_id, ids) = (leased.batch_id, sample.ids());
    give_back(&store, leased, &ids).await;
    assert_eq!((counts(&store).await, count(&store).await), (Counts { batches: 1, keys: 3 }, 3));
    let again = lease(&store, 1).await.pop().unwrap();
    assert_eq!((again.batch_id, ids_of(&again)), (batch_id, set_of(&ids)), "under the same ID");
    assert!(again.keys.iter().all(|key| key.material.ct_eq(&material(key.id))));
    Sample::to_bob(3).ready(&store, true).await;
    lease(&store, 1).await;
    assert_eq!(counts(&store).await.keys, 3, "the master may still retrieve these");
}

#[tokio::test]
async fn a_voided_batch_is_not_leased_and_not_given_back() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2).ready(&store, true).await;
    store.void(&sample.source, sample.batch_id, &[], START.plus(HOUR)).await.unwrap();
    assert!(lease(&store, 1).await.is_empty());

    let other = Sample::to_bob(2).ready(&store, true).await;
    let leased = lease(&store, 1).await.pop().unwrap();
    store.void(&other.source, other.batch_id, &[], START.plus(HOUR)).await.unwrap();
    give_back(&store, leased, &other.ids()).await;
    assert!(lease(&store, 1).await.is_empty());
}

#[tokio::test]
async fn keys_past_their_use_are_neither_counted_nor_leased_and_go() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(2).ready(&store, true).await;
    site.clock.advance(HALF);
    assert_eq!(count(&store).await, 0);
    assert!(lease(&store, 1).await.is_empty());
    while store.sweep(10).await.unwrap().any() {}
    assert_eq!(counts(&store).await, Counts::default(), "nobody has them, and nobody will");
}

#[tokio::test]
async fn a_damaged_block_does_not_stand_in_the_way_of_the_others() {
    let site = site!();
    let store = site.open().await;
    let spoiled = Sample::to_bob(2).ready(&store, true).await;
    let good = Sample::to_bob(2).ready(&store, true).await;
    site.spoil(&spoiled, &spoiled.ids()).await;
    let leased = lease(&store, 2).await;
    assert_eq!(leased.iter().map(ids_of).collect::<Vec<_>>(), [set_of(&good.ids())]);
}

#[tokio::test]
async fn a_commit_that_nobody_saw_is_voided_only_while_none_of_its_keys_was_leased() {
    let site = site!();
    let store = site.open().await;
    let end = START.plus(HOUR);
    let untouched = Sample::to_bob(2).ready(&store, true).await;
    let leased = Sample::to_bob(2).ready(&store, true).await;
    let void = async |sample: &Sample| {
        store.void_unless_leased(&sample.source, sample.batch_id, START, end).await.unwrap()
    };
    assert_eq!(void(&untouched).await, ReadyVoid::Voided);
    assert_eq!(void(&untouched).await, ReadyVoid::Voided, "again");
    assert_eq!(lease(&store, 2).await.len(), 1);
    assert_eq!(void(&leased).await, ReadyVoid::InUse);
    // This batch has not arrived yet; when it does, it is refused.
    let late = Sample::to_bob(2);
    assert_eq!(void(&late).await, ReadyVoid::Voided);
    assert_eq!(late.insert(&store).await.unwrap(), Inserted::Voided);
    let expired = Sample::to_bob(2).ready(&store, true).await;
    site.clock.advance(HOUR);
    assert_eq!(void(&expired).await, ReadyVoid::InUse, "nobody can tell after the expiry");
}

#[tokio::test]
async fn what_is_given_back_in_part_counts_as_in_use() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3).ready(&store, true).await;
    let leased = lease(&store, 1).await.pop().unwrap();
    give_back(&store, leased, &sample.ids()[1..]).await;
    let outcome =
        store.void_unless_leased(&sample.source, sample.batch_id, START, START.plus(HOUR)).await.unwrap();
    assert_eq!(outcome, ReadyVoid::InUse);
}

/// Keys made on demand, where nobody may retrieve them at this site: this site never stored them.
#[tokio::test]
async fn keys_that_the_store_never_had_are_given_back_under_their_own_batch_id() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3);
    let leased = LeasedBlock {
        batch_id: sample.batch_id,
        entitled: Vec::new(),
        leased_at: START,
        usable_until: START.plus(HALF),
        created_at: START,
        provenance: Arc::new(kme::Provenance { grade: grade(), expires_at: START.plus(HOUR) }),
        keys: sample.ids().into_iter().map(key_of).collect(),
    };
    give_back(&store, leased, &sample.ids()).await;
    let leased = lease(&store, 1).await.pop().unwrap();
    assert_eq!((leased.batch_id, ids_of(&leased)), (sample.batch_id, set_of(&sample.ids())));
    assert_eq!(leased.provenance.grade, grade());
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 0 });
    // What its source voids meanwhile does not come back.
    store.void(&sample.source, sample.batch_id, &[], START.plus(HOUR)).await.unwrap();
    give_back(&store, leased, &sample.ids()).await;
    assert!(lease(&store, 1).await.is_empty());
}

#[tokio::test]
async fn a_record_that_was_spoiled_costs_no_other_block_that_is_given_back() {
    let site = site!();
    let store = site.open().await;
    let spoiled = Sample::to_bob(2).ready(&store, true).await;
    let good = Sample::to_bob(2).ready(&store, true).await;
    let leased = lease(&store, 2).await;
    let mut link = site.sql().await;
    let spoil = "UPDATE records SET header = slots WHERE batch_id = $1";
    sqlx::query(spoil).bind(spoiled.batch_id.as_bytes().as_slice()).execute(&mut *link).await.unwrap();
    let (source, recipient) = (kme("site-a"), bob());
    let pair = ReadyPair { master: &good.master, recipient: &recipient };
    let returned: Vec<_> = leased.iter().map(|block| returned(block, &source, pair)).collect();
    store.give_back(&returned).await.unwrap();
    assert_eq!(lease(&store, 2).await.iter().map(ids_of).collect::<Vec<_>>(), [set_of(&good.ids())]);
}
