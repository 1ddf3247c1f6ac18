//! Tests of the store's rules. Each runs on both databases: its file is a module of `on_sqlite` and of
//! `on_postgres`, where `site!()` makes a new, empty database of that kind.

mod copy;
#[expect(clippy::duplicate_mod, reason = "the same rules on both databases")]
mod on_postgres;
mod on_sqlite;

use std::collections::HashSet;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use kme::{KeyMaterial, ManualClock, Party, Recipient, SaeId, SecretBytes, SourceGrade};
use testkit::postgres::TestPostgres;

use super::testing::{Counts, counts};
use super::*;

pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const HALF: Duration = Duration::from_mins(30);
const START: Timestamp = Timestamp::from_ms(1_795_392_000_000);

/// Which database a site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// A site's database, files and clock. Stores are opened on it one after the other, or together.
pub(super) struct Site {
    dir: tempfile::TempDir,
    url: String,
    pub(super) clock: Arc<ManualClock>,
}

impl Site {
    pub(super) fn on(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = match kind {
            Kind::Sqlite => format!("sqlite://{}", dir.path().join("site.db").display()),
            Kind::Postgres => TestPostgres::shared().new_database(),
        };
        Self::at(dir, url)
    }

    pub(super) fn at(dir: tempfile::TempDir, url: String) -> Self {
        KeyEncryptionKeys::create_file(&dir.path().join("one.kek"), &OsRandom).unwrap();
        Self { dir, url, clock: Arc::new(ManualClock::starting_at(START)) }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn settings(&self, kek_file: &str) -> StoreSettings {
        let keks = KeyEncryptionKeys::from_file(&self.path(kek_file)).unwrap();
        StoreSettings { url: self.url.clone(), kme: kme("site-b"), keks, migrate: true }
    }

    pub(super) async fn try_open(&self, kek_file: &str) -> Result<Store, StoreError> {
        Store::open(self.settings(kek_file), self.clock.clone(), Arc::new(OsRandom)).await
    }

    pub(super) async fn open(&self) -> Store {
        self.try_open("one.kek").await.unwrap()
    }

    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        Store::migrate(self.settings("one.kek"), self.clock.now()).await
    }

    /// A connection of the test itself, to read or spoil what is stored.
    pub(super) async fn sql(&self) -> Link {
        Address::parse(&self.url).unwrap().connect().await.unwrap()
    }

    /// Overwrites the sealed keys of `batch` whose IDs are in `ids`.
    pub(super) async fn spoil(&self, batch: &Sample, ids: &[KeyId]) {
        let mut link = self.sql().await;
        let id: &[u8] = batch.batch_id.as_bytes();
        let mut slots: Vec<u8> = sqlx::query_scalar("SELECT slots FROM records WHERE batch_id = $1")
            .bind(id)
            .fetch_one(&mut *link)
            .await
            .unwrap();
        let mut all = batch.ids();
        all.sort();
        let slot_bytes = slots.len() / all.len();
        for id in ids {
            let slot = all.binary_search(id).unwrap();
            slots[slot * slot_bytes..][..slot_bytes].fill(7);
        }
        sqlx::query("UPDATE records SET slots = $2 WHERE batch_id = $1")
            .bind(id)
            .bind(slots)
            .execute(&mut *link)
            .await
            .unwrap();
    }
}

/// Runs a statement in a transaction of a writer, as a job among others.
struct Raw(&'static str);

impl Verb for Raw {
    type Output = ();
    const NAME: &'static str = "raw";

    async fn run(&self, link: &mut Link, _: &Sealer, _: Timestamp) -> Result<(), StoreError> {
        sqlx::raw_sql(self.0).execute(&mut **link).await?;
        Ok(())
    }
}

/// Runs `statement` on the connection of a writer.
pub(super) async fn on_writer(store: &Store, statement: &'static str) -> Result<(), StoreError> {
    store.call(Raw(statement)).await
}

pub(super) fn sae(id: &str) -> SaeId {
    id.parse().unwrap()
}

pub(super) fn kme(id: &str) -> KmeId {
    id.parse().unwrap()
}

pub(super) fn to_sae(id: &str) -> Party {
    Party::Sae(sae(id))
}

pub(super) fn to_kme(id: &str) -> Party {
    Party::Kme(kme(id))
}

pub(super) fn slave(party: Party) -> Entitlement {
    Entitlement { party, role: Role::Slave }
}

/// A batch of alice at site-a, owned so that tests can change it.
pub(super) struct Sample {
    pub(super) batch_id: BatchId,
    pub(super) source: KmeId,
    master: SaeId,
    pub(super) recipients: Vec<Recipient>,
    pub(super) entitled: Vec<Entitlement>,
    pub(super) content: ContentDigest,
    pub(super) copy_ends_at: Option<Timestamp>,
    pub(super) keys: Vec<Key>,
}

impl Sample {
    /// For `parties`, all of them at site-b, where the store under test stands.
    pub(super) fn to(parties: &[Party], keys: usize) -> Self {
        let ids = KeyId::draw_batch(keys, &OsRandom).unwrap();
        Self {
            batch_id: BatchId::draw(&OsRandom).unwrap(),
            source: kme("site-a"),
            master: sae("alice"),
            recipients: parties
                .iter()
                .map(|party| Recipient { party: party.clone(), kme: kme("site-b") })
                .collect(),
            entitled: parties.iter().cloned().map(slave).collect(),
            content: ContentDigest([7; 32]),
            copy_ends_at: None,
            keys: ids.into_iter().map(key_of).collect(),
        }
    }

    pub(super) fn to_bob(keys: usize) -> Self {
        Self::to(&[to_sae("bob")], keys)
    }

    /// With key IDs that begin like those of `other`.
    pub(super) fn beside(mut self, other: &Self) -> Self {
        for key in &mut self.keys {
            let mut id = *key.id.as_bytes();
            id[..6].copy_from_slice(&other.keys[0].id.as_bytes()[..6]);
            *key = key_of(KeyId::from_bytes(id));
        }
        self
    }

    /// Of another master.
    pub(super) fn of(mut self, master: &str) -> Self {
        self.master = sae(master);
        self
    }

    /// With one more key.
    pub(super) fn with(mut self, id: KeyId) -> Self {
        self.keys.push(key_of(id));
        self
    }

    pub(super) fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// Calls `work` with the batch: made at the start, expired an hour later.
    pub(super) async fn with_batch<T>(&self, work: impl AsyncFnOnce(&NewBatch<'_>) -> T) -> T {
        self.with_life(START.plus(HOUR), work).await
    }

    /// Calls `work` with the batch, which expires at `expires_at`.
    pub(super) async fn with_life<T>(
        &self,
        expires_at: Timestamp,
        work: impl AsyncFnOnce(&NewBatch<'_>) -> T,
    ) -> T {
        work(&self.as_new(expires_at)).await
    }

    /// The batch, which expires at `expires_at`.
    pub(super) fn as_new(&self, expires_at: Timestamp) -> NewBatch<'_> {
        NewBatch {
            batch_id: self.batch_id,
            source: &self.source,
            master: &self.master,
            recipients: &self.recipients,
            entitled: &self.entitled,
            content: self.content,
            created_at: START,
            expires_at,
            copy_ends_at: self.copy_ends_at,
            keys: &self.keys,
        }
    }

    pub(super) async fn insert(&self, store: &Store) -> Result<Inserted, StoreError> {
        self.with_batch(async |batch| store.insert_batch(batch).await).await
    }

    pub(super) async fn stored(self, store: &Store) -> Self {
        assert_eq!(self.insert(store).await.unwrap(), Inserted::Stored);
        self
    }
}

pub(super) fn grade() -> SourceGrade {
    SourceGrade { entropy_sources: ["os".to_owned()].into(), pools: 3, hybrid_tls: true }
}

impl Sample {
    /// Alice, who made them with an order, may retrieve her copies here until `end`.
    pub(super) fn ordered(mut self, end: Timestamp) -> Self {
        self.entitled.push(Entitlement { party: Party::Sae(self.master.clone()), role: Role::Master });
        self.copy_ends_at = Some(end);
        self
    }

    /// No slave may retrieve them here.
    pub(super) fn for_others(mut self) -> Self {
        self.entitled.clear();
        self
    }

    /// Ready keys of alice at site-a for bob at site-b, in the store of site-a.
    pub(super) async fn ready(mut self, store: &Store, master_refetch: bool) -> Self {
        let master = Entitlement { party: Party::Sae(self.master.clone()), role: Role::Master };
        self.entitled = master_refetch.then_some(master).into_iter().collect();
        let until = START.plus(HALF);
        let inserted = self
            .with_batch(async |batch| store.insert_ready(slice::from_ref(batch), &grade(), until).await)
            .await;
        assert_eq!(inserted.unwrap(), Inserted::Stored);
        self
    }
}

pub(super) fn key_of(id: KeyId) -> Key {
    Key { id, material: material(id) }
}

/// A leased block of a pair, to be given back to the store of site-a.
pub(super) fn returned<'a>(
    leased: &'a LeasedBlock,
    source: &'a KmeId,
    pair: ReadyPair<'a>,
) -> ReturnedBlock<'a> {
    ReturnedBlock {
        batch_id: leased.batch_id,
        source,
        pair,
        entitled: &leased.entitled,
        created_at: leased.created_at,
        usable_until: leased.usable_until,
        provenance: &leased.provenance,
        keys: &leased.keys,
    }
}

/// Gives back those of the leased keys whose IDs are in `ids`.
pub(super) async fn give_back(store: &Store, mut leased: LeasedBlock, ids: &[KeyId]) {
    leased.keys.retain(|key| ids.contains(&key.id));
    let recipient = Recipient { party: to_sae("bob"), kme: kme("site-b") };
    let pair = ReadyPair { master: &sae("alice"), recipient: &recipient };
    store.give_back(&[returned(&leased, &kme("site-a"), pair)]).await.unwrap();
}

/// Material that follows from the ID, so that a test can check it.
pub(super) fn material(id: KeyId) -> KeyMaterial {
    let mut bytes = [0x5a; 32];
    bytes[..16].copy_from_slice(id.as_bytes());
    bytes[..16].reverse();
    KeyMaterial::new(SecretBytes::copy_of(&bytes))
}

/// A request of an SAE at site-b.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) caller: SaeId,
    pub(super) path: Party,
    pub(super) mode: RetrievalMode,
    pub(super) replay_window: Duration,
    patience: Duration,
}

impl Ask {
    pub(super) fn by(caller: &str) -> Self {
        Self {
            caller: sae(caller),
            path: to_sae("alice"),
            mode: RetrievalMode::Once,
            replay_window: Duration::ZERO,
            patience: Duration::from_secs(10),
        }
    }

    pub(super) fn path(mut self, path: Party) -> Self {
        self.path = path;
        self
    }

    pub(super) fn until_expiry(mut self) -> Self {
        self.mode = RetrievalMode::UntilExpiry;
        self
    }

    pub(super) fn replay(mut self, window: Duration) -> Self {
        self.replay_window = window;
        self
    }

    pub(super) fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(super) async fn at(&self, store: &Store, ids: &[KeyId]) -> Result<Vec<Key>, RetrieveError> {
        store
            .retrieve(&Retrieval {
                caller: &self.caller,
                local: &kme("site-b"),
                path: &self.path,
                key_ids: ids,
                mode: self.mode,
                replay_window: self.replay_window,
                patience: self.patience,
            })
            .await
    }

    pub(super) async fn gets(&self, store: &Store, ids: &[KeyId]) {
        let keys = self.at(store, ids).await.unwrap();
        assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), ids, "order of the request");
        for key in keys {
            assert!(key.material.ct_eq(&material(key.id)), "material of {}", key.id);
        }
    }

    pub(super) async fn is_not_entitled(&self, store: &Store, ids: &[KeyId]) {
        let refused = self.at(store, ids).await;
        assert!(matches!(refused, Err(RetrieveError::NotEntitled)), "{refused:?}");
    }

    pub(super) async fn finds_nothing(&self, store: &Store, ids: &[KeyId]) {
        let refused = self.at(store, ids).await;
        assert!(matches!(refused, Err(RetrieveError::NotFound)), "{refused:?}");
    }
}
