//! How much is stored for whom, counted in the database.

use super::*;

fn source(id: &str) -> Owner {
    Owner::Source(kme(id))
}

fn alice() -> Owner {
    Owner::Master(kme("site-a"), sae("alice"))
}

fn stored(keys: u64, bytes: u64) -> Stored {
    Stored { keys, bytes, tombstones: 0 }
}

#[tokio::test]
async fn a_count_finds_what_all_have_stored_and_forgets_what_was_retrieved_voided_or_swept() {
    let site = site!();
    let (store, replica) = (site.open().await, site.open().await);
    let key_bytes = 32;
    let batch = Sample::to_bob(3).stored(&store).await;
    let voided = Sample::to_bob(2).stored(&replica).await;
    let unknown = Sample::to_bob(1);
    store.void(&kme("site-a"), unknown.batch_id, &[], START.plus(HALF)).await.unwrap();
    assert_eq!(store.usage().of(&alice()), Stored::default(), "nobody has counted");
    store.count_stored().await.unwrap();
    assert_eq!(store.usage().of(&alice()), stored(5, 5 * key_bytes));
    let of_source = Stored { tombstones: 1, ..stored(5, 5 * key_bytes) };
    assert_eq!(store.usage().of(&source("site-a")), of_source);
    assert_eq!(store.usage().of(&source("site-b")), Stored::default());

    Ask::by("bob").gets(&replica, &batch.ids()).await;
    store.void(&kme("site-a"), voided.batch_id, &[], START.plus(HOUR)).await.unwrap();
    site.clock.advance(HALF);
    store.sweep(100).await.unwrap();
    store.count_stored().await.unwrap();
    // A batch of which no key is left counts as one.
    assert_eq!(store.usage().of(&source("site-a")), stored(2, 0));

    site.clock.advance(HOUR);
    while store.sweep(100).await.unwrap().any() {}
    store.count_stored().await.unwrap();
    assert_eq!(store.usage().of(&alice()), Stored::default());
}

#[tokio::test]
async fn a_count_goes_through_all_pieces() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(2).stored(&store).await;
    let mut link = site.sql().await;
    // Twice as many batches, again and again.
    let bits = match link.dialect() {
        Dialect::Sqlite => "randomblob(16)",
        Dialect::Postgres => "decode(md5(random()::text), 'hex')",
    };
    let double = format!(
        "INSERT INTO records (batch_id, prefix, source_kme, master_sae, recipient, key_count, key_bytes, \
         data_key_id, expires_at_ms, ready_keys, ready_until_ms, erase_at_ms, header, state, slots) \
         SELECT {bits}, prefix, source_kme, master_sae, recipient, key_count, key_bytes, data_key_id, \
         expires_at_ms, ready_keys, ready_until_ms, erase_at_ms, header, state, slots FROM records"
    );
    for _ in 0..10 {
        sqlx::raw_sql(sqlx::AssertSqlSafe(double.clone())).execute(&mut *link).await.unwrap();
    }
    store.count_stored().await.unwrap();
    assert_eq!(store.usage().of(&alice()), stored(1024 * 2, 1024 * 2 * 32));
}

#[tokio::test]
async fn a_name_that_is_none_any_more_does_not_stop_the_count() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(2).stored(&store).await;
    // Nobody sees the last character.
    let mut link = site.sql().await;
    let rename = "UPDATE records SET master_sae = 'alice\u{200b}'";
    sqlx::raw_sql(sqlx::AssertSqlSafe(rename.to_owned())).execute(&mut *link).await.unwrap();
    Sample::to_bob(3).stored(&store).await;
    store.count_stored().await.unwrap();
    assert_eq!(store.usage().of(&alice()), stored(3, 3 * 32));
}
