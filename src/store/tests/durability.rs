//! Restarts, KEK rotation, damage and schema versions.

use super::*;

#[tokio::test]
async fn keys_survive_a_restart_and_retrieved_ones_do_not_come_back() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to(&[to_sae("bob"), to_sae("carol")], 2).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    store.close().await;
    assert!(matches!(store.ping().await, Err(StoreError::Closed)));
    assert!(matches!(store.sweep(1).await, Err(StoreError::Closed)));

    let store = site.open().await;
    store.ping().await.unwrap();
    Ask::by("bob").finds_nothing(&store, &ids[..1]).await;
    Ask::by("carol").gets(&store, &ids[..1]).await;
    Ask::by("bob").gets(&store, &ids[1..]).await;
}

#[tokio::test]
async fn what_was_answered_survives_a_store_that_was_never_closed() {
    let site = site!();
    let store = site.open().await;
    let ids = Sample::to_bob(2).stored(&store).await.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    // The second store reads the log that the first one left, as after a crash.
    let second = site.open().await;
    Ask::by("bob").finds_nothing(&second, &ids[..1]).await;
    Ask::by("bob").gets(&second, &ids[1..]).await;
}

#[tokio::test]
async fn another_kek_is_refused_at_open() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    store.close().await;
    KeyEncryptionKeys::create_file(&site.path("two.kek"), &OsRandom).unwrap();
    let error = site.try_open("two.kek").await.unwrap_err();
    assert!(matches!(error, StoreError::Seal(SealError::UnknownKek { .. })), "{error:?}");
    assert!(error.to_string().contains("was not given"), "{error}");
}

#[tokio::test]
async fn a_rotated_kek_opens_old_rows_and_seals_new_ones() {
    let site = site!();
    let store = site.open().await;
    let old = Sample::to_bob(1).stored(&store).await.ids();
    store.close().await;
    KeyEncryptionKeys::create_file(&site.path("two.kek"), &OsRandom).unwrap();
    site.clock.advance(Duration::from_millis(1));
    let lines = ["two.kek", "one.kek"].map(|name| std::fs::read_to_string(site.path(name)).unwrap());
    std::fs::write(site.path("both.kek"), lines.concat()).unwrap();

    let store = site.try_open("both.kek").await.unwrap();
    Ask::by("bob").gets(&store, &old).await;
    let new = Sample::to_bob(1).stored(&store).await.ids();
    store.close().await;
    // The newest data key is wrapped by the new KEK, so the old one may be dropped.
    let store = site.try_open("two.kek").await.unwrap();
    Ask::by("bob").gets(&store, &new).await;
}

/// Give a new KEK to all replicas before one of them seals with it; whoever forgets that loses nothing.
#[tokio::test]
async fn what_a_daemon_lacks_the_kek_of_stays_for_those_that_have_it() {
    let site = site!();
    let forgotten = site.open().await;
    KeyEncryptionKeys::create_file(&site.path("two.kek"), &OsRandom).unwrap();
    let store = site.try_open("two.kek").await.unwrap();
    let (ready, other) =
        (Sample::to_bob(2).ready(&store, true).await, Sample::to_bob(2).stored(&store).await);
    let own = Sample::to_bob(3).ready(&forgotten, true).await;
    let pair = ReadyPair { master: &sae("alice"), recipient: &ready.recipients[0] };
    let leased =
        |blocks: Vec<LeasedBlock>| blocks.into_iter().map(|block| block.batch_id).collect::<Vec<_>>();
    assert_eq!(leased(forgotten.lease(pair, 9, HOUR).await.unwrap()), [own.batch_id]);
    let refused = Ask::by("bob").at(&forgotten, &other.ids()).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Seal(_)))), "{refused:?}");
    assert_eq!(leased(store.lease(pair, 9, HOUR).await.unwrap()), [ready.batch_id]);
    Ask::by("bob").gets(&store, &other.ids()).await;
}

#[tokio::test]
async fn keys_that_cannot_be_opened_here_hold_up_the_erasure_of_no_others() {
    let site = site!();
    let window = Duration::from_mins(5);
    let lacks = site.open().await;
    KeyEncryptionKeys::create_file(&site.path("two.kek"), &OsRandom).unwrap();
    let has = site.try_open("two.kek").await.unwrap();
    let ask = Ask { replay_window: window, ..Ask::by("bob") };
    // Those that cannot be opened are due first.
    for store in [&has, &has, &lacks] {
        let sample = Sample::to_bob(1).stored(store).await;
        ask.gets(store, &sample.ids()).await;
        site.clock.advance(Duration::from_secs(1));
    }
    site.clock.advance(window);
    for _ in 0..3 {
        lacks.sweep(2).await.unwrap();
    }
    assert_eq!(counts(&lacks).await.keys, 2, "its own is erased");
    site.clock.advance(Duration::from_mins(2));
    has.sweep(2).await.unwrap();
    assert_eq!(counts(&lacks).await.keys, 0);
}

#[tokio::test]
async fn a_tampered_row_is_reported_by_key_and_costs_no_other_key() {
    let site = site!();
    let store = site.open().await;
    let batch = Sample::to_bob(2).stored(&store).await;
    let ids = batch.ids();
    site.spoil(&batch, &ids[..1]).await;
    let refused = Ask::by("bob").at(&store, &[ids[1], ids[0]]).await;
    let Err(RetrieveError::Store(StoreError::Corrupt { table: "records", row })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(row, ids[0].to_string());
    Ask::by("bob").gets(&store, &ids[1..]).await;
}

#[tokio::test]
async fn a_sealed_key_moved_to_another_row_does_not_open() {
    let site = site!();
    let store = site.open().await;
    let mut ids = Sample::to_bob(2).stored(&store).await.ids();
    ids.sort();
    // The first slot, twice.
    let mut link = site.sql().await;
    let text = match link.dialect() {
        Dialect::Sqlite => {
            "UPDATE records SET slots = CAST(substr(slots, 1, 48) || substr(slots, 1, 48) AS BLOB)"
        }
        Dialect::Postgres => "UPDATE records SET slots = substr(slots, 1, 48) || substr(slots, 1, 48)",
    };
    sqlx::query(text).execute(&mut *link).await.unwrap();
    let refused = Ask::by("bob").at(&store, &ids[1..]).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::Corrupt { .. }))), "{refused:?}");
    Ask::by("bob").gets(&store, &ids[..1]).await;
}

#[tokio::test]
async fn an_older_or_newer_schema_is_refused_with_what_to_do() {
    let site = site!();
    if let Some(file) = site.url.strip_prefix("sqlite://") {
        std::fs::write(file, "").unwrap();
    }
    let settings = StoreSettings { migrate: false, ..site.settings("one.kek") };
    let open = || Store::open(settings.clone(), site.clock.clone(), Arc::new(OsRandom));
    let error = open().await.unwrap_err();
    assert!(matches!(&error, StoreError::Schema(text) if text.contains("dqkd migrate")), "{error}");

    site.migrate().await.unwrap();
    site.migrate().await.unwrap();
    open().await.unwrap().close().await;

    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'future', true, $1, 0)",
    )
    .bind([0_u8; 48].as_slice())
    .execute(&mut *site.sql().await)
    .await
    .unwrap();
    for error in [open().await.unwrap_err(), site.try_open("one.kek").await.unwrap_err()] {
        assert!(matches!(&error, StoreError::Schema(text) if text.contains("newer")), "{error}");
    }
}
