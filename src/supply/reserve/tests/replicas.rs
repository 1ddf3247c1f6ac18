//! Several daemons on one database: they share what is ready.

use testkit::postgres::TestPostgres;

use super::*;
use testkit::needs;

fn on_sqlite() -> Site {
    Site::new()
}

fn on_postgres() -> Site {
    Site { url: TestPostgres::shared().new_database(), ..Site::new() }
}

macro_rules! on_both {
    ($($rule:ident,)*) => {
        mod sqlite {
            $(#[tokio::test] async fn $rule() { super::$rule(super::on_sqlite()).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $rule() {
                super::needs!(Postgres);
                super::$rule(super::on_postgres()).await;
            })*
        }
    };
}

on_both! {
    what_one_replica_made_another_hands_out_and_no_key_goes_out_twice,
}

async fn what_one_replica_made_another_hands_out_and_no_key_goes_out_twice(site: Site) {
    let (one, two) = (site.start(256, 4096).await, site.start(0, 4096).await);
    // Both know the pair, and that nothing is ready.
    one.set_up(false);
    two.set_up(false);
    assert!(one.take(1).await.is_err() && two.take(1).await.is_err());
    one.set_up(true);
    let filling = one.fill();
    one.has_at_least(256).await;
    filling.abort();
    let _ = filling.await;
    one.set_up(false);
    let mut seen = HashSet::new();
    // The second cannot make any. It soon finds those of the first, and then both take from the same store.
    let taken = loop {
        match two.take(40).await {
            Ok(keys) => break keys,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    for id in ids(&taken) {
        assert!(seen.insert(id));
    }
    let ready = async || one.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    for run in [&one, &two] {
        loop {
            match run.take(8).await {
                Ok(keys) => assert!(ids(&keys).into_iter().all(|id| seen.insert(id)), "a key twice"),
                Err(_) if ready().await == 0 => break,
                // It skipped a block that the other was leasing, and believes for a moment that the store is
                // empty.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    assert!(seen.len() >= 256 - 2 * 7, "{}", seen.len());
}

#[tokio::test]
async fn a_replica_refills_what_another_took() {
    needs!(Postgres);
    let site = on_postgres();
    let (one, two) = (site.start(256, 4096).await, site.start(256, 4096).await);
    let _filling = one.fill();
    one.is_filled_to(256).await;
    one.take(1).await.unwrap();
    two.set_up(false);
    assert_eq!(two.take(128).await.unwrap().len(), 128);
    // The first gets a request now and then, as behind a balancer, and has a block in memory. Nothing else
    // makes it count.
    let ready = async || one.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    for _ in 0..30 {
        one.take(1).await.unwrap();
        if ready().await >= 256 - 64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    panic!("never refilled: {}", ready().await);
}

#[tokio::test]
async fn daemons_that_fill_one_reserve_at_once_make_at_most_four_batches_each_too_many() {
    needs!(Postgres);
    let site = on_postgres();
    let (one, two) = (site.start(1000, 4096).await, site.start(1000, 4096).await);
    let _filling = [one.fill(), two.fill()];
    let ready = async || one.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    // Both know the pair and find it empty.
    let _ = tokio::join!(one.count(), two.count());
    for _ in 0..1000 {
        if ready().await >= 1000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // By then every batch in work has ended.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = ready().await;
    let made = [&one, &two].map(|run| run.double.made.load(Ordering::SeqCst));
    assert!((1000..=1000 + 2 * 4 * 64).contains(&ready), "{ready} of {made:?}");
}
