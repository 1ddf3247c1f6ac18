//! Who may retrieve a key, and how often.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[tokio::test]
async fn a_slave_gets_its_keys_once_in_the_order_asked() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(3).stored(&store).await.ids();
    let order = [ids[2], ids[0]];
    Ask::by("bob").gets(&store, &order).await;
    Ask::by("bob").finds_nothing(&store, &[ids[0]]).await;
    Ask::by("bob").finds_nothing(&store, &[ids[1], ids[2]]).await;
    Ask::by("bob").gets(&store, &[ids[1]]).await;
    assert_eq!(counts(&store).await.keys, 0, "rows are erased");
}

#[tokio::test]
async fn a_foreign_key_is_not_entitled_before_anything_is_missing() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let unknown = KeyId::draw(&OsRandom).unwrap();
    Ask::by("eve").is_not_entitled(&store, &[unknown, ids[0]]).await;
    Ask::by("eve").finds_nothing(&store, &[unknown]).await;
    Ask::by("bob").finds_nothing(&store, &[ids[0], unknown]).await;
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn one_foreign_key_among_own_ones_refuses_all_and_uses_up_none() {
    let site = site!();
    let store = site.open().await;
    let own = Sample::to_bob(1).stored(&store).await.ids();
    let foreign = Sample::to(&[to_sae("carol")], 1).stored(&store).await.ids();
    Ask::by("bob").is_not_entitled(&store, &[own[0], foreign[0]]).await;
    Ask::by("bob").gets(&store, &own).await;
    Ask::by("carol").gets(&store, &foreign).await;
}

#[tokio::test]
async fn keys_that_were_touched_under_other_rules_are_not_fresh() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(4).stored(&store).await;
    let ids = sample.ids();
    Ask::by("bob").replay(HOUR).gets(&store, &ids[..1]).await;
    Ask::by("bob").until_expiry().gets(&store, &ids[1..2]).await;
    store.void(&sample.source, sample.batch_id, &ids[2..3], START.plus(HOUR)).await.unwrap();
    Ask::by("bob").gets(&store, &ids[3..]).await;
    for id in ids {
        Ask::by("bob").finds_nothing(&store, &[id]).await;
    }
    let again =
        store.void(&sample.source, sample.batch_id, &sample.ids()[2..3], START.plus(HOUR)).await.unwrap();
    assert_eq!(again.voided, sample.ids()[2..3], "the void is remembered");
}

#[tokio::test]
async fn a_refused_retrieval_costs_those_that_share_its_commit_nothing() {
    let site = site!();
    let store = Arc::new(site.open().await);
    let ids = Sample::to_bob(60).stored(&store).await.ids();
    let mut asked = tokio::task::JoinSet::new();
    for (index, id) in ids.iter().copied().enumerate() {
        let store = Arc::clone(&store);
        asked.spawn(async move {
            match index % 5 {
                0 => Ask::by("eve").is_not_entitled(&store, &[id]).await,
                1 => Ask::by("bob").finds_nothing(&store, &[id, KeyId::draw(&OsRandom).unwrap()]).await,
                _ => Ask::by("bob").gets(&store, &[id]).await,
            }
        });
    }
    while let Some(result) = asked.join_next().await {
        result.unwrap();
    }
    let refused = |index: &usize| index % 5 < 2;
    for (index, id) in ids.into_iter().enumerate() {
        if refused(&index) {
            Ask::by("bob").gets(&store, &[id]).await;
        } else {
            Ask::by("bob").finds_nothing(&store, &[id]).await;
        }
    }
    assert_eq!(counts(&store).await.keys, 0);
}

#[tokio::test]
async fn each_slave_of_a_multicast_key_retrieves_it_once_and_the_last_erases_it() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to(&[to_sae("bob"), to_sae("carol")], 1).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids).await;
    assert_eq!(counts(&store).await.keys, 1);
    Ask::by("bob").finds_nothing(&store, &ids).await;
    Ask::by("eve").is_not_entitled(&store, &ids).await;
    Ask::by("carol").gets(&store, &ids).await;
    assert_eq!(counts(&store).await.keys, 0);
    Ask::by("carol").finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn a_key_for_the_site_goes_to_one_sae_of_it() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to(&[to_kme("site-b")], 2).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    Ask::by("carol").finds_nothing(&store, &ids[..1]).await;
    Ask::by("carol").path(to_kme("site-a")).gets(&store, &ids[1..]).await;
}

#[tokio::test]
async fn what_is_addressed_to_the_caller_is_used_before_what_is_addressed_to_its_site() {
    let site = site!();
    let store = site.open().await;
    let parties = [to_kme("site-b"), to_sae("bob")];
    let ids = Sample::to(&parties, 1).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids).await;
    // Bob's own retrieval is gone, the site's is left for carol.
    Ask::by("carol").gets(&store, &ids).await;
    Ask::by("bob").finds_nothing(&store, &ids).await;

    let ids = Sample::to(&parties, 1).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids).await;
    Ask::by("bob").gets(&store, &ids).await;
    Ask::by("carol").finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn the_path_of_a_slave_names_the_master_or_its_kme() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    for wrong in [to_sae("dave"), to_sae("site-a"), to_kme("alice"), to_kme("site-b")] {
        Ask::by("bob").path(wrong).finds_nothing(&store, &ids).await;
    }
    Ask::by("eve").path(to_sae("dave")).is_not_entitled(&store, &ids).await;
    Ask::by("bob").path(to_sae("alice")).gets(&store, &ids[..1]).await;
    Ask::by("bob").path(to_kme("site-a")).gets(&store, &ids[1..]).await;
}

#[tokio::test]
async fn the_path_of_a_master_names_a_recipient_or_its_kme() {
    let site = site!();
    let store = site.open().await;
    let mut batch = Sample::to(&[to_sae("erin")], 2);
    batch.recipients[0].kme = kme("site-c");
    batch.entitled = vec![Entitlement { party: to_sae("alice"), role: Role::Master }];
    let ids = batch.stored(&store).await.ids();
    for wrong in [to_sae("alice"), to_sae("bob"), to_kme("site-b")] {
        Ask::by("alice").path(wrong).finds_nothing(&store, &ids).await;
    }
    Ask::by("alice").path(to_sae("erin")).gets(&store, &ids[..1]).await;
    Ask::by("alice").path(to_kme("site-c")).gets(&store, &ids[1..]).await;
    Ask::by("alice").path(to_sae("erin")).finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn within_the_replay_window_only_the_same_caller_repeats() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to(&[to_kme("site-b")], 1).stored(&store).await.ids();
    let window = Duration::from_secs(30);
    let (bob, carol) = (Ask::by("bob").replay(window), Ask::by("carol").replay(window));
    bob.gets(&store, &ids).await;
    carol.finds_nothing(&store, &ids).await;
    site.clock.advance(Duration::from_secs(29));
    bob.gets(&store, &ids).await;
    assert!(!store.sweep(100).await.unwrap().any(), "not before the window has passed");
    // The window counts from the first retrieval, not from the repeat.
    site.clock.advance(Duration::from_secs(1));
    bob.finds_nothing(&store, &ids).await;
    assert_eq!(store.sweep(100).await.unwrap().keys, 1);
    assert_eq!(counts(&store).await.keys, 0);
}

#[tokio::test]
async fn a_key_with_a_retrieval_left_outlives_the_replay_window() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to(&[to_sae("bob"), to_sae("carol")], 1).stored(&store).await.ids();
    let window = Duration::from_secs(30);
    Ask::by("bob").replay(window).gets(&store, &ids).await;
    site.clock.advance(window * 2);
    assert!(!store.sweep(100).await.unwrap().any());
    Ask::by("bob").replay(window).finds_nothing(&store, &ids).await;
    Ask::by("carol").replay(window).gets(&store, &ids).await;
    Ask::by("carol").replay(window).gets(&store, &ids).await;
    site.clock.advance(window);
    assert_eq!(store.sweep(100).await.unwrap().keys, 1);
}

#[tokio::test]
async fn until_expiry_keys_are_repeated_until_they_expire() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let bob = Ask::by("bob").until_expiry();
    for _ in 0..3 {
        bob.gets(&store, &ids).await;
    }
    assert!(!store.sweep(100).await.unwrap().any());
    Ask::by("eve").until_expiry().is_not_entitled(&store, &ids).await;
    site.clock.advance(HOUR);
    bob.finds_nothing(&store, &ids).await;
}

#[tokio::test]
async fn an_expired_key_is_missing_for_everyone_before_any_sweep() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    site.clock.advance(Duration::from_millis(3_599_999));
    Ask::by("bob").gets(&store, &ids[..1]).await;
    site.clock.advance(Duration::from_millis(1));
    Ask::by("bob").finds_nothing(&store, &ids[1..]).await;
    Ask::by("eve").finds_nothing(&store, &ids[1..]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_concurrent_retrievals_of_a_key_exactly_one_succeeds() {
    let site = site!();
    let store = Arc::new(site.open().await);
    for _ in 0..5 {
        let ids = Sample::to_bob(2).stored(&store).await.ids();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (store, ids) = (Arc::clone(&store), ids.clone());
            tasks.spawn(async move { Ask::by("bob").at(&store, &ids).await });
        }
        let mut successes = 0;
        while let Some(result) = tasks.join_next().await {
            match result.unwrap() {
                Ok(keys) => successes += usize::from(keys.len() == 2),
                Err(RetrieveError::NotFound) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(successes, 1);
    }
}

#[tokio::test]
async fn two_stores_on_one_database_give_a_key_to_one_caller() {
    let site = site!();
    let (one, two) = (site.open().await, site.open().await);
    let ids = Sample::to_bob(1).stored(&one).await.ids();
    let bob = Ask::by("bob");
    let (first, second) = tokio::join!(bob.at(&one, &ids), bob.at(&two, &ids));
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
}

#[tokio::test]
async fn a_caller_that_is_gone_before_the_commit_uses_up_nothing() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    // A current-thread runtime: one poll queues the job, and the writer runs only after the drop.
    let bob = Ask::by("bob");
    let mut asked = Box::pin(bob.at(&store, &ids));
    tokio::select! {
        biased;
        answer = &mut asked => panic!("answered at once: {answer:?}"),
        () = std::future::ready(()) => {}
    }
    drop(asked);
    bob.gets(&store, &ids).await;
}

#[tokio::test]
async fn no_ids_too_many_ids_and_repeated_ids_are_misuse() {
    let site = site!();
    let store = site.open().await;
    let id = KeyId::draw(&OsRandom).unwrap();
    for ids in [vec![], vec![id, id], vec![id; MAX_KEYS_PER_RETRIEVAL + 1]] {
        let refused = Ask::by("bob").at(&store, &ids).await;
        assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Misuse(_)))));
    }
}

#[tokio::test]
async fn a_key_that_is_asked_for_before_it_arrives_is_missing_then_and_there_later() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2);
    Ask::by("bob").finds_nothing(&store, &sample.ids()).await;
    Ask::by("carol").finds_nothing(&store, &sample.ids()).await;
    let sample = sample.stored(&store).await;
    Ask::by("bob").gets(&store, &sample.ids()).await;
}

#[tokio::test]
async fn whoever_is_told_that_the_store_is_busy_has_used_up_nothing_also_later() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let mut other = site.sql().await;
    sqlx::raw_sql(lock_out(&other)).execute(&mut *other).await.unwrap();
    let refused = Ask::by("bob").patient_for(Duration::from_millis(50)).at(&store, &ids).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Busy(None)))), "{refused:?}");
    // Its job still waits for the lock.
    sqlx::raw_sql("ROLLBACK").execute(&mut *other).await.unwrap();
    Ask::by("bob").gets(&store, &ids).await;
}

/// A clock that counts how often it was read.
struct Watched {
    clock: Arc<ManualClock>,
    reads: AtomicU32,
}

impl Clock for Watched {
    fn now(&self) -> Timestamp {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.clock.now()
    }
}

#[tokio::test]
async fn a_key_that_expires_while_its_retrieval_waits_for_a_lock_is_not_returned() {
    let site = site!();
    let clock = Arc::new(Watched { clock: Arc::clone(&site.clock), reads: AtomicU32::default() });
    let store = Store::open(site.settings("one.kek"), clock.clone(), Arc::new(OsRandom)).await.unwrap();
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    let mut other = site.sql().await;
    sqlx::raw_sql(lock_out(&other)).execute(&mut *other).await.unwrap();
    let before = clock.reads.load(Ordering::SeqCst);
    let bob = Ask::by("bob");
    let hour = async {
        while clock.reads.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
        site.clock.advance(HOUR);
        sqlx::raw_sql("ROLLBACK").execute(&mut *other).await.unwrap();
    };
    tokio::join!(bob.finds_nothing(&store, &ids), hour);
}

/// What keeps every retrieval waiting until a ROLLBACK.
fn lock_out(link: &Link) -> &'static str {
    match link.dialect() {
        Dialect::Sqlite => "BEGIN IMMEDIATE",
        Dialect::Postgres => "BEGIN; LOCK TABLE records IN ACCESS EXCLUSIVE MODE",
    }
}
