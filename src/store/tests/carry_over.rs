//! A database that the release before filled (`schema_2/`): everything in it is as it was.

use std::collections::HashMap;

use serde::Deserialize;

use super::super::connection::migrate_to;
use super::*;

/// What is in the database.
#[derive(Deserialize)]
struct Batch {
    batch_id: BatchId,
    key_ids: Vec<KeyId>,
}

fn batches() -> HashMap<String, Batch> {
    serde_json::from_str(include_str!("schema_2/batches.json")).unwrap()
}

/// A site whose database the release before filled.
async fn filled(site: Site) -> Site {
    std::fs::write(site.path("one.kek"), include_str!("schema_2/one.kek")).unwrap();
    Address::parse(&site.url).unwrap().find(true).unwrap();
    let mut link = site.sql().await;
    migrate_to(&mut link, 2).await.unwrap();
    let rows = include_str!("schema_2/rows.sql");
    let rows = match link.dialect() {
        Dialect::Sqlite => rows.to_owned(),
        Dialect::Postgres => rows.replace("X'", "'\\x"),
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(rows)).execute(&mut *link).await.unwrap();
    link.into_inner().close().await.unwrap();
    site
}

async fn is_as_it_was(store: &Store) {
    let batches = batches();
    let ids = |name: &str| batches[name].key_ids.clone();
    let (bob, carol, eve) = (Ask::by("bob"), Ask::by("carol"), Ask::by("eve"));
    eve.is_not_entitled(store, &ids("fresh")).await;
    bob.gets(store, &ids("fresh")).await;
    bob.finds_nothing(store, &ids("fresh")[..1]).await;

    bob.finds_nothing(store, &ids("first two retrieved")[..1]).await;
    eve.finds_nothing(store, &ids("first two retrieved")[1..2]).await;
    bob.gets(store, &ids("first two retrieved")[2..]).await;

    let shared = ids("first two retrieved by bob");
    bob.finds_nothing(store, &shared[1..2]).await;
    bob.gets(store, &shared[2..]).await;
    carol.gets(store, &shared).await;
    carol.finds_nothing(store, &shared[..1]).await;

    let replayed = ids("retrieved with a window of half an hour");
    carol.is_not_entitled(store, &replayed).await;
    bob.finds_nothing(store, &replayed).await;
    bob.clone().replay(HALF).gets(store, &replayed).await;

    bob.finds_nothing(store, &ids("voided")).await;
    bob.finds_nothing(store, &ids("first voided")[..1]).await;
    bob.gets(store, &ids("first voided")[1..]).await;
    let again = store.void(&kme("site-a"), batches["voided"].batch_id, &[], START.plus(HOUR)).await.unwrap();
    assert_eq!(again.kept, []);
    for (name, expected) in [
        ("fresh", Inserted::AlreadyStored),
        ("first two retrieved", Inserted::AlreadyStored),
        ("voided", Inserted::Voided),
        ("tombstone", Inserted::Voided),
    ] {
        let mut push = Sample::to_bob(0);
        push.batch_id = batches[name].batch_id;
        push.keys = ids(name).into_iter().map(key_of).collect();
        assert_eq!(push.insert(store).await.unwrap(), expected, "{name}");
    }

    let recipient = Recipient { party: to_sae("bob"), kme: kme("site-b") };
    let pair = ReadyPair { master: &sae("alice"), recipient: &recipient };
    assert_eq!(store.ready_count(pair).await.unwrap(), 2 + 5 + 3 + 2);
    let mut leased: HashMap<BatchId, HashSet<KeyId>> = HashMap::new();
    for block in store.lease(pair, 9, HOUR).await.unwrap() {
        assert_eq!((block.provenance.expires_at, &block.provenance.grade), (START.plus(HOUR), &grade()));
        assert_eq!((block.created_at, block.usable_until), (START, START.plus(HALF)));
        assert!(block.keys.iter().all(|key| key.material.ct_eq(&material(key.id))));
        leased.insert(block.batch_id, block.keys.iter().map(|key| key.id).collect());
    }
    let expected = [
        ("last two given back", 1..3),
        ("ready", 0..5),
        ("ready, first retrieved by alice", 1..4),
        ("ready, nobody here may retrieve", 0..2),
    ];
    let of = |(name, range): (&str, std::ops::Range<usize>)| {
        (batches[name].batch_id, ids(name)[range].iter().copied().collect::<HashSet<_>>())
    };
    assert_eq!(leased, expected.into_iter().map(of).collect());
    let alice = Ask::by("alice").path(to_sae("bob"));
    alice.gets(store, &ids("leased")).await;
    alice.finds_nothing(store, &ids("ready, first retrieved by alice")[..1]).await;
    alice.gets(store, &ids("ready, first retrieved by alice")[1..]).await;
}

#[tokio::test]
async fn what_the_release_before_stored_is_as_it_was_and_its_tables_are_gone() {
    let site = filled(site!()).await;
    let settings = StoreSettings { migrate: false, ..site.settings("one.kek") };
    let refused = Store::open(settings.clone(), site.clock.clone(), Arc::new(OsRandom)).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Schema(text) if text.contains("dqkd migrate")), "{refused}");
    site.migrate().await.unwrap();
    let store = Store::open(settings, site.clock.clone(), Arc::new(OsRandom)).await.unwrap();
    is_as_it_was(&store).await;
    store.close().await;
    for table in ["batches", "keys", "retrievals", "ready_blocks"] {
        let text = format!("SELECT 1 FROM {table}");
        let gone = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_optional(&mut *site.sql().await).await;
        assert!(gone.is_err(), "a daemon of the release before must not decide on half of the keys: {table}");
    }
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM data_keys").fetch_one(&mut *site.sql().await).await.unwrap();
    assert_eq!(left, 1, "the old data keys are gone");
}

#[tokio::test]
async fn without_the_kek_of_any_live_key_nothing_is_moved_and_with_it_everything_is() {
    let site = filled(site!()).await;
    let older = "UPDATE data_keys SET kek_id = 'another', created_at_ms = 0 WHERE data_key_id = \
                 (SELECT data_key_id FROM data_keys ORDER BY data_key_id DESC LIMIT 1)";
    sqlx::raw_sql(older).execute(&mut *site.sql().await).await.unwrap();
    let refused = site.migrate().await.unwrap_err();
    assert!(matches!(refused, StoreError::Seal(SealError::UnknownKek { .. })), "{refused:?}");
    let back = "UPDATE data_keys SET kek_id = (SELECT max(kek_id) FROM data_keys WHERE kek_id <> 'another')";
    sqlx::raw_sql(back).execute(&mut *site.sql().await).await.unwrap();
    is_as_it_was(&site.open().await).await;
}

#[tokio::test]
async fn daemons_that_start_together_move_everything_once() {
    let site = filled(site!()).await;
    if site.url.starts_with("sqlite:") {
        // A file has one daemon.
        return;
    }
    let (one, two) = tokio::join!(site.open(), site.open());
    one.close().await;
    is_as_it_was(&two).await;
}

#[tokio::test]
async fn what_has_expired_is_left_behind_and_what_is_damaged_is_reported_when_asked_for() {
    let site = filled(site!()).await;
    let batches = batches();
    let text = "UPDATE keys SET sealed = (SELECT sealed FROM keys WHERE sealed IS NOT NULL AND key_id <> $1 LIMIT 1) WHERE key_id = $1";
    let (spoiled, sound) = (batches["fresh"].key_ids[0], &batches["fresh"].key_ids[1..]);
    sqlx::query(text).bind(spoiled.as_bytes().as_slice()).execute(&mut *site.sql().await).await.unwrap();
    let expired = "UPDATE batches SET expires_at_ms = 0 WHERE batch_id = $1";
    let id = batches["voided"].batch_id;
    sqlx::query(expired).bind(id.as_bytes().as_slice()).execute(&mut *site.sql().await).await.unwrap();
    let store = site.open().await;
    assert_eq!(counts(&store).await.batches, 10);
    let refused = Ask::by("bob").at(&store, &[spoiled]).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Corrupt { .. }))), "{refused:?}");
    Ask::by("bob").gets(&store, sound).await;
}
