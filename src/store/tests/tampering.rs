//! Somebody who may write to the database, but has no KEK: exchanges every column between rows, and raises every
//! number. Nobody gets what is not theirs, nothing wrong is answered, nothing crashes.
//!
//! What such a writer can do all the same: erase, and put back a whole old record or its old state
//! (docs/data-model.md).

use std::collections::HashMap;

use super::super::connection::Sql;
use super::*;

/// Columns of a table; the first is its key.
const TABLES: [(&str, &[&str]); 3] = [
    ("data_keys", &["data_key_id", "kek_id", "wrapped", "created_at_ms", "kme"]),
    (
        "records",
        &[
            "batch_id",
            "prefix",
            "source_kme",
            "master_sae",
            "recipient",
            "key_count",
            "key_bytes",
            "data_key_id",
            "expires_at_ms",
            "ready_keys",
            "ready_until_ms",
            "erase_at_ms",
            "header",
            "state",
            "slots",
        ],
    ),
    ("tombstones", &["batch_id", "source_kme", "expires_at_ms"]),
];
/// Columns that take part in a decision.
const DECIDING: [&str; 5] = ["batch_id", "data_key_id", "header", "state", "slots"];
const NOW: Duration = Duration::from_mins(20);
const CALLERS: [&str; 5] = ["alice", "bob", "carol", "dave", "eve"];

/// What is in the store.
struct World {
    /// Who may still retrieve a key.
    retrievable: HashMap<KeyId, Vec<&'static str>>,
    /// Ready keys of alice's and of dave's for bob.
    ready: HashMap<&'static str, HashSet<KeyId>>,
    batches: Vec<BatchId>,
}

impl World {
    /// Rows that differ in everything, under two data keys.
    async fn fill(site: &Site) -> Self {
        let mut world = Self { retrievable: HashMap::new(), ready: HashMap::new(), batches: Vec::new() };
        let store = site.open().await;
        let bobs = Sample::to_bob(3).stored(&store).await;
        world.add(&bobs, &["bob"]);
        let carols = Sample::to(&[to_sae("carol")], 3).stored(&store).await;
        world.add(&carols, &["carol"]);
        let expired = Sample::to_bob(3);
        let soon = START.plus(NOW / 2);
        expired.with_life(soon, async |batch| store.insert_batch(batch).await).await.unwrap();
        world.add(&expired, &[]);
        store.close().await;
        let store = site.open().await;
        let shared = Sample::to(&[to_sae("bob"), to_sae("carol")], 3).stored(&store).await;
        Ask::by("bob").gets(&store, &shared.ids()).await;
        world.add(&shared, &["carol"]);
        let due = Sample::to_bob(3).stored(&store).await;
        Ask::by("bob").replay(NOW / 2).gets(&store, &due.ids()).await;
        world.add(&due, &[]);
        let window = Sample::to(&[to_sae("carol")], 3).stored(&store).await;
        Ask::by("carol").replay(HOUR).gets(&store, &window.ids()).await;
        world.add(&window, &[]);
        let voided = Sample::to_bob(3).stored(&store).await;
        store.void(&voided.source, voided.batch_id, &[], START.plus(HOUR)).await.unwrap();
        world.add(&voided, &[]);
        let ended = Sample::to_bob(3).ready(&store, true).await;
        let pair = ReadyPair { master: &ended.master, recipient: &ended.recipients[0] };
        assert_eq!(store.lease(pair, 1, Duration::ZERO).await.unwrap().len(), 1);
        world.add(&ended, &[]);
        for (name, is_leased) in [("alice", true), ("alice", false), ("dave", true), ("dave", false)] {
            let sample = Sample::to_bob(3).of(name).ready(&store, true).await;
            world.add(&sample, &[name]);
            if is_leased {
                assert_eq!(lease(&store, name).await.unwrap().len(), 1);
            } else {
                world.ready.insert(name, sample.ids().into_iter().collect());
            }
        }
        for _ in 0..2 {
            let unseen = Sample::to_bob(1);
            store.void(&unseen.source, unseen.batch_id, &[], START.plus(HOUR)).await.unwrap();
        }
        store.close().await;
        site.clock.advance(NOW);
        world
    }

    fn add(&mut self, batch: &Sample, may_retrieve: &[&'static str]) {
        self.batches.push(batch.batch_id);
        self.retrievable.extend(batch.ids().into_iter().map(|id| (id, may_retrieve.to_vec())));
    }

    /// Everybody asks for everything, twice. Returns how many keys were got.
    async fn gives_nothing_wrong(&self, site: &Site, what: &str) -> usize {
        let Ok(store) = site.try_open("one.kek").await else { return 0 };
        let (mut seen, mut leased) = (HashSet::new(), HashSet::new());
        for name in ["alice", "dave"] {
            for _ in 0..2 {
                let blocks = lease(&store, name).await.unwrap_or_default();
                for key in blocks.into_iter().flat_map(|block| block.keys) {
                    assert!(self.ready[name].contains(&key.id), "{what}: {name} leases another's key");
                    assert!(leased.insert(key.id), "{what}: leased twice");
                    assert!(key.material.ct_eq(&material(key.id)), "{what}: wrong key");
                }
            }
        }
        for round in 0..2 {
            for caller in CALLERS {
                let path = if self.ready.contains_key(caller) { "bob" } else { "alice" };
                let ask = Ask::by(caller).path(to_sae(path));
                let ids: Vec<KeyId> = self.retrievable.keys().copied().collect();
                // At once, so that they share transactions.
                let answers =
                    futures_util::future::join_all(ids.chunks(1).map(|id| ask.at(&store, id))).await;
                for (id, answer) in ids.iter().zip(answers) {
                    let may_retrieve = &self.retrievable[id];
                    match answer {
                        Ok(keys) => {
                            assert!(may_retrieve.contains(&caller), "{what}: {caller} got a key of others");
                            assert!(seen.insert((caller, *id)), "{what}: {caller} got a key twice");
                            assert!(keys[0].id == *id && keys[0].material.ct_eq(&material(*id)), "{what}");
                        }
                        Err(RetrieveError::Store(StoreError::Other(error))) => panic!("{what}: {error}"),
                        Err(_) => {}
                    }
                }
            }
            let swept = store.sweep(100).await;
            assert!(swept.is_ok(), "{what}: {swept:?}, round {round}");
        }
        for batch_id in &self.batches {
            let voided = store.void(&kme("site-c"), *batch_id, &[], START.plus(HOUR)).await;
            assert!(!matches!(voided, Err(StoreError::Other(_))), "{what}: {voided:?}");
        }
        store.close().await;
        seen.len() + leased.len()
    }

    /// How many of all keys and leases are somebody's.
    fn all(&self) -> usize {
        let retrievable: usize = self.retrievable.values().map(Vec::len).sum();
        retrievable + self.ready.values().map(HashSet::len).sum::<usize>()
    }
}

async fn lease(store: &Store, master: &str) -> Result<Vec<LeasedBlock>, StoreError> {
    let recipient = Recipient { party: to_sae("bob"), kme: kme("site-b") };
    store.lease(ReadyPair { master: &sae(master), recipient: &recipient }, 9, HOUR).await
}

/// Statements after which the database holds no rule of its own against this.
const UNGUARDED: Sql = Sql {
    sqlite: "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON",
    postgres: "SET session_replication_role = replica",
};

async fn unguard(link: &mut Link) {
    let text = link.text(UNGUARDED).to_owned();
    run(link, text).await;
}

async fn run(link: &mut Link, text: String) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(text.clone())).execute(&mut **link).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
}

/// The keys of a table's rows, as literals.
async fn keys_of(link: &mut Link, table: &str, key: &str) -> Vec<String> {
    let text = format!("SELECT {key} FROM {table} ORDER BY {key}");
    let keys: Vec<Vec<u8>> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(text)).fetch_all(&mut **link).await.unwrap();
    keys.iter().map(|bytes| literal(link.dialect(), bytes)).collect()
}

fn literal(dialect: Dialect, bytes: &[u8]) -> String {
    match dialect {
        Dialect::Sqlite => format!("X'{}'", hex::encode(bytes)),
        Dialect::Postgres => format!("'\\x{}'::bytea", hex::encode(bytes)),
    }
}

/// Exchanges `column` between the rows `one` and `two`.
async fn exchange(link: &mut Link, (table, key): (&str, &str), column: &str, one: &str, two: &str) {
    let nobody = literal(link.dialect(), &[0; 16]);
    let text = if column == key {
        format!(
            "UPDATE {table} SET {key} = {nobody} WHERE {key} = {one}; \
             UPDATE {table} SET {key} = {one} WHERE {key} = {two}; \
             UPDATE {table} SET {key} = {two} WHERE {key} = {nobody}"
        )
    } else {
        format!(
            "CREATE TEMP TABLE swap AS SELECT {key} AS k, {column} AS v FROM {table} WHERE {key} IN ({one}, {two}); \
             UPDATE {table} SET {column} = (SELECT v FROM swap WHERE k = {two}) WHERE {key} = {one}; \
             UPDATE {table} SET {column} = (SELECT v FROM swap WHERE k = {one}) WHERE {key} = {two}; \
             DROP TABLE swap"
        )
    };
    run(link, text).await;
}

/// A site with the same database as `site`: a copy of its file, or one filled in the same way.
fn copy_of(site: &Site) -> Site {
    let mut copy = Site::on(Kind::Sqlite);
    for name in ["one.kek", "site.db"] {
        std::fs::copy(site.path(name), copy.path(name)).unwrap();
    }
    copy.clock = Arc::new(ManualClock::starting_at(START.plus(NOW)));
    copy
}

#[tokio::test]
async fn columns_exchanged_between_rows_give_nobody_what_is_not_theirs() {
    let site = site!();
    let world = World::fill(&site).await;
    if site.url.starts_with("sqlite:") {
        let honest = copy_of(&site);
        assert_eq!(world.gives_nothing_wrong(&honest, "unchanged").await, world.all());
        for (table, columns) in TABLES {
            let rows = keys_of(&mut site.sql().await, table, columns[0]).await;
            assert!(rows.len() > 1, "{table}");
            for column in columns {
                // What decides: each row with the one after it, and with the third after it.
                let steps: &[usize] = if DECIDING.contains(column) { &[1, 3] } else { &[1] };
                for (one, step) in (0..rows.len()).flat_map(|one| steps.iter().map(move |step| (one, *step)))
                {
                    let two = (one + step) % rows.len();
                    let copy = copy_of(&site);
                    let mut link = copy.sql().await;
                    unguard(&mut link).await;
                    exchange(&mut link, (table, columns[0]), column, &rows[one], &rows[two]).await;
                    link.into_inner().close().await.unwrap();
                    world.gives_nothing_wrong(&copy, &format!("{table}.{column}, {one} and {two}")).await;
                }
            }
        }
        return;
    }
    // One database for all: an exchange is undone by a second one.
    for (table, columns) in TABLES {
        let rows = keys_of(&mut site.sql().await, table, columns[0]).await;
        for (number, column) in columns.iter().enumerate() {
            let mut link = site.sql().await;
            unguard(&mut link).await;
            let (one, two) = (&rows[number % rows.len()], &rows[(number + 1) % rows.len()]);
            exchange(&mut link, (table, columns[0]), column, one, two).await;
        }
    }
    world.gives_nothing_wrong(&site, "many columns at once").await;
}

#[tokio::test]
async fn numbers_that_are_raised_give_nobody_what_is_not_theirs() {
    let site = site!();
    let world = World::fill(&site).await;
    let mut link = site.sql().await;
    unguard(&mut link).await;
    let numbers = ["expires_at_ms", "ready_until_ms", "erase_at_ms", "ready_keys", "key_count", "key_bytes"];
    for column in numbers {
        run(&mut link, format!("UPDATE records SET {column} = coalesce({column}, 0) + 25920000000")).await;
    }
    run(&mut link, "UPDATE tombstones SET expires_at_ms = expires_at_ms + 25920000000".to_owned()).await;
    run(&mut link, "UPDATE data_keys SET created_at_ms = created_at_ms + 25920000000".to_owned()).await;
    let recipient = "UPDATE records SET recipient = (SELECT max(recipient) FROM records)";
    run(&mut link, recipient.to_owned()).await;
    let lowered = "UPDATE records SET erase_at_ms = 0";
    run(&mut link, lowered.to_owned()).await;
    let got = world.gives_nothing_wrong(&site, "raised").await;
    assert_eq!(got, world.all(), "and everybody gets what is theirs");
}

#[tokio::test]
async fn a_database_of_another_kme_is_refused_by_name() {
    let site = site!();
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    store.close().await;
    let settings = StoreSettings { kme: kme("site-z"), ..site.settings("one.kek") };
    let refused = Store::open(settings.clone(), site.clock.clone(), Arc::new(OsRandom)).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("site-b") && text.contains("site-z") && text.contains("store.url"), "{text}");
    // Whoever changes the name in the database wins nothing: the seals do not open.
    run(&mut site.sql().await, "UPDATE data_keys SET kme = 'site-z'".to_owned()).await;
    let store = Store::open(settings, site.clock.clone(), Arc::new(OsRandom)).await.unwrap();
    let record: Vec<u8> =
        sqlx::query_scalar("SELECT batch_id FROM records").fetch_one(&mut *site.sql().await).await.unwrap();
    let batch_id = BatchId::from_bytes(record.try_into().unwrap());
    let voided = store.void(&kme("site-a"), batch_id, &[], START.plus(HOUR)).await;
    assert!(matches!(voided, Err(StoreError::Corrupt { .. })), "{voided:?}");
}
