//! Copies of a store, in every direction between the two databases.

use std::path::Path;

use super::*;
use testkit::needs;

const DIRECTIONS: [(Kind, Kind); 4] = [
    (Kind::Sqlite, Kind::Postgres),
    (Kind::Postgres, Kind::Sqlite),
    (Kind::Sqlite, Kind::Sqlite),
    (Kind::Postgres, Kind::Postgres),
];

/// Another database of the site: with its KEK and its clock.
fn target_of(site: &Site, kind: Kind) -> Site {
    let mut target = Site::on(kind);
    std::fs::copy(site.path("one.kek"), target.path("one.kek")).unwrap();
    target.clock = Arc::clone(&site.clock);
    target
}

async fn copy(from: &Site, to: &Site) -> Result<Copied, StoreError> {
    let keks = KeyEncryptionKeys::from_file(&from.path("one.kek")).unwrap();
    Store::copy(&from.url, &to.url, keks, from.clock.now()).await
}

fn rows(copied: &Copied, table: &str) -> u64 {
    copied.rows.iter().find(|(name, _)| *name == table).unwrap().1
}

fn bob() -> Recipient {
    Recipient { party: to_sae("bob"), kme: kme("site-b") }
}

/// Everything that a store can hold.
struct Full {
    fresh: Sample,
    shared: Sample,
    replayed: Sample,
    voided: Sample,
    unseen: Sample,
    ready: Sample,
    leased: Sample,
}

impl Full {
    /// Over more than one page, and sealed with more than one data key.
    async fn fill(site: &Site) -> Self {
        let store = site.open().await;
        let fresh = Sample::to_bob(450).stored(&store).await;
        for _ in 0..213 {
            Sample::to_bob(1).stored(&store).await;
        }
        store.close().await;
        let store = site.open().await;
        let shared = Sample::to(&[to_sae("bob"), to_sae("carol")], 260).stored(&store).await;
        Ask::by("bob").gets(&store, &shared.ids()).await;
        let replayed = Sample::to_bob(2).stored(&store).await;
        Ask::by("bob").replay(HOUR).gets(&store, &replayed.ids()).await;
        let voided = Sample::to_bob(2).stored(&store).await;
        let unseen = Sample::to_bob(1);
        for batch in [&voided, &unseen] {
            store.void(&kme("site-a"), batch.batch_id, &[], START.plus(HOUR)).await.unwrap();
        }
        let leased = Sample::to_bob(3).ready(&store, true).await;
        let pair = ReadyPair { master: &sae("alice"), recipient: &bob() };
        assert_eq!(store.lease(pair, 1, HOUR).await.unwrap().len(), 1);
        let ready = Sample::to_bob(5).ready(&store, true).await;
        store.close().await;
        Self { fresh, shared, replayed, voided, unseen, ready, leased }
    }

    /// The store at `site` is as it was left.
    async fn is_at(&self, site: &Site) {
        let store = site.open().await;
        let (bob, carol, eve) = (Ask::by("bob"), Ask::by("carol"), Ask::by("eve"));
        bob.gets(&store, &self.fresh.ids()).await;
        bob.finds_nothing(&store, &self.fresh.ids()[..1]).await;
        assert_eq!(self.fresh.insert(&store).await.unwrap(), Inserted::AlreadyStored);
        bob.finds_nothing(&store, &self.shared.ids()[..1]).await;
        eve.is_not_entitled(&store, &self.shared.ids()[..1]).await;
        carol.gets(&store, &self.shared.ids()).await;
        bob.clone().replay(HOUR).gets(&store, &self.replayed.ids()).await;
        bob.finds_nothing(&store, &self.replayed.ids()).await;
        bob.finds_nothing(&store, &self.voided.ids()).await;
        assert_eq!(self.voided.insert(&store).await.unwrap(), Inserted::Voided);
        assert_eq!(self.unseen.insert(&store).await.unwrap(), Inserted::Voided);
        let leased =
            store.lease(ReadyPair { master: &sae("alice"), recipient: &self::bob() }, 9, HOUR).await.unwrap();
        let batches: Vec<BatchId> = leased.iter().map(|block| block.batch_id).collect();
        assert_eq!(
            batches,
            [self.ready.batch_id],
            "what was leased is not ready again: {:?}",
            self.leased.batch_id
        );
        let key = &leased[0].keys[0];
        assert!(leased[0].keys.len() == 5 && key.material.ct_eq(&material(key.id)));
        store.close().await;
    }
}

#[tokio::test]
async fn a_copy_in_any_direction_holds_what_the_store_held_and_every_seal_opens() {
    needs!(Postgres);
    for (from, to) in DIRECTIONS {
        let site = Site::on(from);
        let full = Full::fill(&site).await;
        let target = target_of(&site, to);
        let copied =
            copy(&site, &target).await.unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error:?}"));
        assert_eq!(rows(&copied, "data_keys"), 2, "{from:?} to {to:?}");
        assert_eq!((rows(&copied, "records"), rows(&copied, "tombstones")), (219, 1));
        assert_eq!(copied.opened, 450 + 213 + 260 + 2 + 3 + 5, "all but the voided ones");
        full.is_at(&target).await;
    }
}

#[tokio::test]
async fn what_has_expired_stays_behind() {
    needs!(Postgres);
    for (from, to) in DIRECTIONS {
        let site = Site::on(from);
        Full::fill(&site).await;
        site.clock.advance(HOUR);
        let copied = copy(&site, &target_of(&site, to)).await.unwrap();
        assert!(copied.rows.iter().all(|(_, rows)| *rows == 0) && copied.opened == 0, "{copied:?}");
    }
}

#[tokio::test]
async fn a_store_that_a_daemon_uses_is_neither_copied_nor_copied_to() {
    needs!(Postgres);
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let site = Site::on(kind);
        let batch = Sample::to_bob(3).stored(&site.open().await).await;
        let target = target_of(&site, kind);
        for (used, what) in [(&site, "the source is in use"), (&target, "the target is in use")] {
            let daemon = used.open().await;
            let error = copy(&site, &target).await.unwrap_err().to_string();
            assert!(error.contains(what), "{kind:?}: {error}");
            daemon.close().await;
        }
        assert_eq!(copy(&site, &target).await.unwrap().opened, 3);
        Ask::by("bob").gets(&target.open().await, &batch.ids()).await;
    }
}

#[tokio::test]
async fn a_target_that_has_anything_is_refused_and_stays_as_it_is() {
    needs!(Postgres);
    for (from, to) in DIRECTIONS {
        let site = Site::on(from);
        Full::fill(&site).await;
        let target = target_of(&site, to);
        let store = target.open().await;
        let there = Sample::to_bob(1).stored(&store).await;
        store.close().await;
        let error = copy(&site, &target).await.unwrap_err().to_string();
        assert!(error.contains("the target is not empty"), "{error}");
        let store = target.open().await;
        assert_eq!(counts(&store).await.batches, 1);
        Ask::by("bob").gets(&store, &there.ids()).await;
        store.close().await;
    }
}

/// A row that cannot be opened fails the whole copy, and the target stays empty.
#[tokio::test]
async fn a_seal_that_does_not_open_or_a_kek_that_is_not_given_leaves_the_target_empty() {
    needs!(Postgres);
    for (from, to) in DIRECTIONS {
        let site = Site::on(from);
        let full = Full::fill(&site).await;
        let target = target_of(&site, to);
        KeyEncryptionKeys::create_file(&site.path("two.kek"), &OsRandom).unwrap();
        let two = KeyEncryptionKeys::from_file(&site.path("two.kek")).unwrap();
        let error = Store::copy(&site.url, &target.url, two, site.clock.now()).await.unwrap_err();
        assert!(matches!(error, StoreError::Seal(SealError::UnknownKek { .. })), "{error:?}");
        site.spoil(&full.shared, &full.shared.ids()[200..201]).await;
        let error = copy(&site, &target).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { table: "records", .. }), "{error:?}");
        let store = target.open().await;
        assert_eq!(counts(&store).await, Counts::default());
        store.close().await;
    }
}

#[tokio::test]
async fn a_source_that_is_not_there_is_not_made() {
    needs!(Postgres);
    let site = Site::on(Kind::Sqlite);
    let error = copy(&site, &target_of(&site, Kind::Postgres)).await.unwrap_err().to_string();
    assert!(error.contains("there is no database"), "{error}");
    assert!(!site.path("site.db").exists());
}

/// Runs the statements that `docs/deployment.md` gives for a restored old state.
#[tokio::test]
async fn a_restored_state_gives_nothing_after_the_documented_statements() {
    needs!(Postgres);
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deployment.md")).unwrap();
    let statements = text.split("```sql\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let site = Site::on(kind);
        let full = Full::fill(&site).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.clone())).execute(&mut *site.sql().await).await.unwrap();
        let store = site.open().await;
        for batch in [&full.fresh, &full.shared, &full.replayed, &full.leased, &full.ready] {
            for caller in ["bob", "carol", "alice"] {
                let asked =
                    Ask::by(caller).path(if caller == "alice" { to_sae("bob") } else { to_sae("alice") });
                asked.replay(HOUR).finds_nothing(&store, &batch.ids()).await;
            }
            assert_eq!(batch.insert(&store).await.unwrap(), Inserted::Voided);
        }
        let pair = ReadyPair { master: &sae("alice"), recipient: &bob() };
        assert!(store.lease(pair, 9, HOUR).await.unwrap().is_empty());
        Sample::to_bob(1).stored(&store).await;
        store.close().await;
    }
}
