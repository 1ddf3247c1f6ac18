//! Several daemons on one database: stores that know nothing of each other.

use tokio::task::JoinSet;

use super::*;

async fn two(site: &Site) -> [Arc<Store>; 2] {
    [Arc::new(site.open().await), Arc::new(site.open().await)]
}

async fn lease(store: &Store, blocks: u32) -> Vec<LeasedBlock> {
    store.lease(pair(&sae("alice"), &bob()), blocks, HOUR).await.unwrap()
}

fn bob() -> Recipient {
    Recipient { party: to_sae("bob"), kme: kme("site-b") }
}

fn pair<'a>(master: &'a SaeId, recipient: &'a Recipient) -> ReadyPair<'a> {
    ReadyPair { master, recipient }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_ready_key_is_leased_exactly_once_by_many_at_once() {
    let site = site!();
    let stores = two(&site).await;
    let mut made = HashSet::new();
    for number in 0..60 {
        let sample = Sample::to_bob(2).ready(&stores[number % 2], number % 3 > 0).await;
        made.extend(sample.ids());
    }
    let mut tasks = JoinSet::new();
    for number in 0..12 {
        let store = Arc::clone(&stores[number % 2]);
        tasks.spawn(async move {
            let mut got = Vec::new();
            // Another daemon may hold the last blocks for a moment, so one empty answer is not the end.
            let mut empty = 0;
            while empty < 3 {
                let blocks = lease(&store, 2).await;
                empty += u32::from(blocks.is_empty());
                got.extend(blocks.into_iter().flat_map(|block| block.keys).map(|key| key.id));
            }
            got
        });
    }
    let mut leased = Vec::new();
    while let Some(got) = tasks.join_next().await {
        leased.extend(got.unwrap());
    }
    assert_eq!(leased.len(), made.len());
    assert_eq!(leased.into_iter().collect::<HashSet<_>>(), made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_retrievals_of_the_same_keys_through_two_daemons_one_succeeds() {
    let site = site!();
    let stores = two(&site).await;
    for round in 0..10 {
        let ids = Sample::to_bob(3).stored(&stores[round % 2]).await.ids();
        let mut tasks = JoinSet::new();
        for number in 0..12 {
            let store = Arc::clone(&stores[number % 2]);
            // All of them want the second key, and they lock in opposite orders.
            let wanted = match number % 3 {
                0 => vec![ids[0], ids[1]],
                1 => vec![ids[1], ids[0]],
                _ => vec![ids[2], ids[1]],
            };
            tasks.spawn(async move { Ask::by("bob").at(&store, &wanted).await });
        }
        let mut successes = 0;
        while let Some(result) = tasks.join_next().await {
            match result.unwrap() {
                Ok(keys) => successes += usize::from(keys.len() == 2),
                Err(RetrieveError::NotFound) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(successes, 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_party_of_a_key_retrieves_it_once_through_whichever_daemon() {
    let site = site!();
    let stores = two(&site).await;
    for _ in 0..10 {
        let ids = Sample::to(&[to_sae("bob"), to_sae("carol")], 1).stored(&stores[0]).await.ids();
        let mut tasks = JoinSet::new();
        for number in 0..12 {
            let (store, ids) = (Arc::clone(&stores[number % 2]), ids.clone());
            let caller = if number % 4 < 2 { "bob" } else { "carol" };
            tasks.spawn(async move { (caller, Ask::by(caller).at(&store, &ids).await.is_ok()) });
        }
        let mut served: Vec<&str> = Vec::new();
        while let Some(result) = tasks.join_next().await {
            let (caller, is_served) = result.unwrap();
            served.extend(is_served.then_some(caller));
        }
        served.sort_unstable();
        assert_eq!(served, ["bob", "carol"]);
        assert_eq!(counts(&stores[0]).await.keys, 0, "the last one erased it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_that_is_pushed_to_two_daemons_at_once_is_stored_once() {
    let site = site!();
    let stores = two(&site).await;
    for _ in 0..20 {
        let sample = Sample::to_bob(5);
        let (one, two) = tokio::join!(sample.insert(&stores[0]), sample.insert(&stores[1]));
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|outcome| *outcome == Inserted::AlreadyStored);
        assert_eq!(outcomes, [Inserted::Stored, Inserted::AlreadyStored]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_id_that_two_batches_bring_at_once_is_stored_once() {
    let site = site!();
    let stores = two(&site).await;
    for _ in 0..20 {
        let second = Sample::to_bob(2);
        let first = Sample::to_bob(2).beside(&second).with(second.ids()[0]);
        let (one, two) = tokio::join!(first.insert(&stores[0]), second.insert(&stores[1]));
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|outcome| *outcome == Inserted::Conflict);
        assert_eq!(outcomes, [Inserted::Stored, Inserted::Conflict]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_void_and_an_insert_that_cross_never_leave_a_live_key() {
    let site = site!();
    let stores = two(&site).await;
    for round in 0..60_u32 {
        let sample = Sample::to_bob(2);
        let all = sample.ids();
        let listed: &[KeyId] = if round % 2 == 0 { &[] } else { &all };
        let pause = || async move {
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
        };
        let void = async {
            pause().await;
            stores[0].void(&sample.source, sample.batch_id, listed, START.plus(HOUR)).await.unwrap()
        };
        let insert = async { sample.insert(&stores[1]).await.unwrap() };
        let (outcome, inserted) = tokio::join!(void, insert);
        assert!(matches!(inserted, Inserted::Stored | Inserted::Voided), "{inserted:?}");
        assert!(outcome.kept.is_empty());
        Ask::by("bob").finds_nothing(&stores[round as usize % 2], &all).await;
        let again = sample.insert(&stores[1]).await.unwrap();
        assert!(matches!(again, Inserted::Voided | Inserted::AlreadyStored), "{again:?}");
        Ask::by("bob").finds_nothing(&stores[0], &all).await;
    }
    assert_eq!(counts(&stores[0]).await.keys, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_void_and_a_retrieval_that_cross_agree_on_who_got_the_key() {
    let site = site!();
    let stores = two(&site).await;
    for round in 0..40 {
        let sample = Sample::to_bob(1).stored(&stores[0]).await;
        let ids = sample.ids();
        let listed: &[KeyId] = if round % 2 == 0 { &[] } else { &ids };
        let void = stores[0].void(&sample.source, sample.batch_id, listed, START.plus(HOUR));
        let bob = Ask::by("bob");
        let (outcome, retrieved) = tokio::join!(void, bob.at(&stores[1], &ids));
        let outcome = outcome.unwrap();
        match retrieved {
            Ok(_) => assert_eq!((outcome.voided, outcome.kept), (vec![], ids)),
            Err(RetrieveError::NotFound) => assert_eq!((outcome.voided, outcome.kept), (ids, vec![])),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_void_and_a_lease_that_cross_agree_on_who_has_the_keys() {
    let site = site!();
    let stores = two(&site).await;
    for round in 0..40 {
        let sample = Sample::to_bob(2).ready(&stores[0], round % 2 == 0).await;
        let end = START.plus(HOUR);
        let void = stores[0].void_unless_leased(&sample.source, sample.batch_id, START, end);
        let (voided, leased) = tokio::join!(void, lease(&stores[1], 1));
        let expected = if leased.is_empty() { ReadyVoid::Voided } else { ReadyVoid::InUse };
        assert_eq!(voided.unwrap(), expected, "round {round}");
        assert!(lease(&stores[0], 5).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sweeps_of_two_daemons_erase_everything_once_and_disturb_nobody() {
    let site = site!();
    let stores = two(&site).await;
    for number in 0..30 {
        Sample::to_bob(10).stored(&stores[number % 2]).await;
    }
    site.clock.advance(HOUR);
    let sweep = |store: Arc<Store>| async move {
        let mut batches = 0;
        // A sweep skips what the other one is erasing, so after an empty sweep more may be left.
        for _ in 0..30 {
            batches += store.sweep(5).await.unwrap().batches;
        }
        batches
    };
    let (one, two) = tokio::join!(sweep(Arc::clone(&stores[0])), sweep(Arc::clone(&stores[1])));
    assert_eq!(one + two, 30);
    assert_eq!(counts(&stores[0]).await, Counts::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_data_key_that_another_daemon_sweeps_comes_back_with_the_next_batch() {
    let site = site!();
    let [one, two] = two(&site).await;
    Sample::to_bob(1).stored(&one).await;
    site.clock.advance(HOUR);
    for _ in 0..20 {
        // Everything that `two` stored before is gone by now, so its data key is unused.
        let sweep = async {
            for _ in 0..3 {
                one.sweep(100).await.unwrap();
            }
        };
        let (sample, ()) = tokio::join!(async { Sample::to_bob(1).insert(&two).await }, sweep);
        assert_eq!(sample.unwrap(), Inserted::Stored);
    }
}

/// An insert finds its data key stored. Another daemon sweeps it before the record refers to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_data_key_that_is_swept_in_the_middle_of_an_insert_costs_a_second_run_and_no_key() {
    const HOLD_INSERTS: &str = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$; \
         CREATE TRIGGER hold BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION hold(); \
         SELECT pg_advisory_lock(4711)";
    const HELD: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 \
         AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let site = site!();
    let [one, two] = two(&site).await;
    let expired = Sample::to_bob(1);
    expired.with_life(START, async |batch| one.insert_batch(batch).await).await.unwrap();
    let mut link = site.sql().await;
    sqlx::raw_sql(HOLD_INSERTS).execute(&mut *link).await.unwrap();
    let sample = Sample::to_bob(1);
    let sweep = async {
        while sqlx::query_scalar::<_, i64>(HELD).fetch_one(&mut *link).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        let swept = Swept { batches: 1, data_keys: 1, ..Swept::default() };
        assert_eq!(two.sweep(100).await.unwrap(), swept);
        sqlx::raw_sql("SELECT pg_advisory_unlock(4711)").execute(&mut *link).await.unwrap();
    };
    let (inserted, ()) = tokio::join!(sample.insert(&one), sweep);
    assert_eq!(inserted.unwrap(), Inserted::Stored);
    Ask::by("bob").gets(&two, &sample.ids()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn daemons_that_start_together_bring_the_schema_up_to_date_once() {
    let site = site!();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (settings, clock) = (site.settings("one.kek"), Arc::clone(&site.clock));
        tasks.spawn(async move { Store::migrate(settings, clock.now()).await });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    Sample::to_bob(1).stored(&site.open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_waits_for_another_that_changes_the_schema() {
    let site = site!();
    site.migrate().await.unwrap();
    let mut other = site.sql().await;
    let change = "SET idle_in_transaction_session_timeout = 0; BEGIN; \
                  LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(change).execute(&mut *other).await.unwrap();
    let done = async {
        // Longer than a request waits for a lock.
        tokio::time::sleep(Duration::from_secs(4)).await;
        sqlx::raw_sql("COMMIT").execute(&mut *other).await.unwrap();
    };
    let (store, ()) = tokio::join!(site.open(), done);
    Sample::to_bob(1).stored(&store).await;
    // After that, the limits of a request hold again.
    let timeout = "DO $$ BEGIN ASSERT current_setting('lock_timeout') = '3s' \
                   AND current_setting('statement_timeout') = '5s'; END $$";
    on_writer(&store, timeout).await.unwrap();
}
