//! Two sites without a network between them, for tests of delivery and its callers.
//!
//! The stores are real SQLite files. Only the source of keys is a double: it records each order and puts the
//! keys into the stores of the sites that exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use kme::{
    Admission, BatchId, Clock, Demands, Directory, FreshKey, Key, KeyId, KeyLimits, KeyMaterial, KmeId,
    ManualClock, OsRandom, Party, Provenance, Random, Recipient, RetrievalMode, SaeId, SecretBytes,
    SourceGrade, Timestamp,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Delivery, DeliveryRules, KeySource, RetrievalPolicy};
use crate::store::testing::counts;
use crate::store::{
    ContentDigest, Entitlement, Inserted, KeyEncryptionKeys, NewBatch, Role, Store, StoreSettings,
};
use crate::supply::{KeyOrder, SupplyError};

/// How long every key lives.
pub(crate) const KEY_TTL: Duration = Duration::from_hours(1);
/// SAEs and their homes; site-c is configured, but does not exist.
pub(crate) const SAES: &[(&str, &str)] = &[
    ("alice", "site-a"),
    ("dave", "site-a"),
    ("bob", "site-b"),
    ("carol", "site-b"),
    ("b/o b%é", "site-b"),
    ("erin", "site-c"),
];
const KMES: &[&str] = &["site-a", "site-b", "site-c"];

impl RetrievalPolicy {
    /// ETSI GS QKD 014, clause 5.4, to the letter.
    pub(crate) const STRICT: Self = Self { mode: RetrievalMode::Once, replay_window: Duration::ZERO };
}

pub(crate) fn rules() -> DeliveryRules {
    DeliveryRules {
        limits: KeyLimits {
            size_bits: 256,
            min_size_bits: 64,
            max_size_bits: 4096,
            max_per_request: 8,
            max_stored_per_pair: 100,
            max_additional_saes: 3,
        },
        admission: Admission::Chain,
        retrieval: RetrievalPolicy::STRICT,
        retrieval_patience: Duration::from_mins(1),
        strict: false,
    }
}

/// An order as the source got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) master: String,
    pub(crate) recipients: Vec<Recipient>,
    pub(crate) number: usize,
    pub(crate) key_bytes: usize,
}

/// What the source does with an order.
#[derive(Clone)]
pub(crate) enum Mood {
    Works,
    Fails(fn() -> SupplyError),
    OneTooFew,
    OneByteShort,
    Panics,
    /// Works once notified.
    WaitsFor(Arc<Notify>),
}

/// Makes keys for the stores it knows.
pub(crate) struct TestSource {
    local: KmeId,
    stores: Vec<(KmeId, Arc<Store>)>,
    clock: Arc<ManualClock>,
    orders: Mutex<Vec<Placed>>,
    mood: Mutex<Mood>,
    ready: Mutex<Vec<FreshKey>>,
    deliverable: AtomicU32,
    placed: Notify,
}

impl TestSource {
    pub(crate) fn orders(&self) -> Vec<Placed> {
        self.orders.lock().clone()
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    pub(crate) fn set_deliverable(&self, keys: u32) {
        self.deliverable.store(keys, Ordering::SeqCst);
    }

    /// Makes `number` keys of the default size, of alice for bob, puts them into memory and returns copies.
    pub(crate) async fn put_ready(&self, number: usize) -> Vec<Key> {
        let (master, recipients, demands) = (sae("alice"), [to_sae("bob", "site-b")], Demands::default());
        let key_bytes = 32;
        let order =
            KeyOrder { master: &master, recipients: &recipients, number, key_bytes, demands: &demands };
        let made = self.fill(order).await.unwrap();
        let copy = |fresh: &FreshKey| Key {
            id: fresh.key.id,
            material: KeyMaterial::new(SecretBytes::copy_of(fresh.key.material.expose())),
        };
        let copies = made.iter().map(copy).collect();
        self.ready.lock().extend(made);
        copies
    }

    /// Takes keys that [`Self::put_ready`] put there.
    fn take_ready(&self, number: usize) -> Option<Vec<FreshKey>> {
        let mut ready = self.ready.lock();
        (ready.len() >= number).then(|| ready.drain(..number).collect())
    }

    /// Waits until an order was placed since the last call.
    pub(crate) async fn order_placed(&self) {
        self.placed.notified().await;
    }

    async fn fill(&self, order: KeyOrder<'_>) -> Result<Vec<FreshKey>, SupplyError> {
        let ids = KeyId::draw_batch(order.number, &OsRandom).unwrap();
        let keys: Vec<Key> = ids.into_iter().map(|id| Key { id, material: drawn(order.key_bytes) }).collect();
        let now = self.clock.now();
        let entropy_sources = ["os".to_owned()].into();
        let grade = SourceGrade { entropy_sources, pools: 3, hybrid_tls: false };
        let provenance = Arc::new(Provenance { grade, expires_at: now.plus(KEY_TTL) });
        if !order.demands.met_by(&provenance, now) {
            return Err(SupplyError::DemandsNotMet);
        }
        let batch_id = BatchId::draw(&OsRandom).unwrap();
        for (kme, store) in &self.stores {
            let master = Entitlement { party: Party::Sae(order.master.clone()), role: Role::Master };
            let slaves = order.recipients.iter().filter(|recipient| recipient.kme == *kme);
            let slaves = slaves.map(|slave| Entitlement { party: slave.party.clone(), role: Role::Slave });
            let entitled: Vec<_> = (*kme == self.local).then_some(master).into_iter().chain(slaves).collect();
            if entitled.is_empty() {
                continue;
            }
            let batch = NewBatch {
                batch_id,
                source: &self.local,
                master: order.master,
                recipients: order.recipients,
                entitled: &entitled,
                content: ContentDigest([1; 32]),
                created_at: now,
                expires_at: now.plus(KEY_TTL),
                copy_ends_at: None,
                keys: &keys,
            };
            assert_eq!(store.insert_batch(&batch).await.unwrap(), Inserted::Stored);
        }
        Ok(keys.into_iter().map(|key| FreshKey { key, provenance: Arc::clone(&provenance) }).collect())
    }
}

fn drawn(len_bytes: usize) -> KeyMaterial {
    let mut bytes = SecretBytes::zeroed(len_bytes);
    OsRandom.fill(bytes.expose_mut()).unwrap();
    KeyMaterial::new(bytes)
}

impl KeySource for TestSource {
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>> {
        Box::pin(async move {
            if let Some(keys) = self.take_ready(order.number) {
                return Ok(keys);
            }
            self.orders.lock().push(Placed {
                master: order.master.to_string(),
                recipients: order.recipients.to_vec(),
                number: order.number,
                key_bytes: order.key_bytes,
            });
            self.placed.notify_one();
            let mood = self.mood.lock().clone();
            match mood {
                Mood::Works => self.fill(order).await,
                Mood::Fails(error) => Err(error()),
                Mood::OneTooFew => {
                    let mut keys = self.fill(order).await?;
                    keys.pop();
                    Ok(keys)
                }
                Mood::OneByteShort => self.fill(KeyOrder { key_bytes: order.key_bytes - 1, ..order }).await,
                Mood::Panics => panic!("a defect in the source of keys"),
                Mood::WaitsFor(signal) => {
                    signal.notified().await;
                    self.fill(order).await
                }
            }
        })
    }

    fn ready<'a>(&'a self, _master: &'a SaeId, _recipient: &'a Recipient) -> BoxFuture<'a, u32> {
        Box::pin(async { self.deliverable.load(Ordering::SeqCst) })
    }
}

/// One site.
pub(crate) struct TestSite {
    pub(crate) store: Arc<Store>,
    pub(crate) source: Arc<TestSource>,
    pub(crate) directory: Arc<ArcSwap<Directory>>,
    pub(crate) delivery: Arc<Delivery>,
}

/// site-a with alice and dave, site-b with bob, carol and `b/o b%é`.
pub(crate) struct TestSites {
    pub(crate) a: TestSite,
    pub(crate) b: TestSite,
    pub(crate) clock: Arc<ManualClock>,
    _files: tempfile::TempDir,
}

impl TestSites {
    pub(crate) async fn new(rules: DeliveryRules) -> Self {
        let files = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_ms(1_795_392_000_000)));
        let mut stores = Vec::new();
        for name in ["site-a", "site-b"] {
            let kek = files.path().join(format!("{name}.kek"));
            KeyEncryptionKeys::create_file(&kek, &OsRandom).unwrap();
            let settings = StoreSettings {
                url: format!("sqlite://{}", files.path().join(format!("{name}.db")).display()),
                kme: kme(name),
                keks: KeyEncryptionKeys::from_file(&kek).unwrap(),
                migrate: true,
            };
            let store = Store::open(settings, clock.clone(), Arc::new(OsRandom)).await.unwrap();
            stores.push((kme(name), Arc::new(store)));
        }
        let site = |name: &str| TestSite::new(name, &stores, &clock, rules.clone());
        Self { a: site("site-a"), b: site("site-b"), clock, _files: files }
    }
}

impl TestSite {
    fn new(
        name: &str,
        stores: &[(KmeId, Arc<Store>)],
        clock: &Arc<ManualClock>,
        rules: DeliveryRules,
    ) -> Self {
        let local = kme(name);
        let store = stores.iter().find(|(kme, _)| *kme == local).map(|(_, store)| Arc::clone(store)).unwrap();
        let source = Arc::new(TestSource {
            local,
            stores: stores.to_vec(),
            clock: Arc::clone(clock),
            orders: Mutex::default(),
            mood: Mutex::new(Mood::Works),
            ready: Mutex::default(),
            deliverable: AtomicU32::new(0),
            placed: Notify::new(),
        });
        let directory = Arc::new(ArcSwap::from_pointee(directory_of(name, SAES)));
        let delivery =
            Delivery::new(Arc::clone(&directory), rules, Arc::clone(&store), Arc::clone(&source) as _);
        Self { store, source, directory, delivery: Arc::new(delivery) }
    }

    /// What a request may change here: the number of orders placed and of keys stored.
    pub(crate) async fn marks(&self) -> (usize, u64) {
        (self.source.orders().len(), counts(&self.store).await.keys)
    }
}

/// The directory of the site `local` with `saes`.
pub(crate) fn directory_of(local: &str, saes: &[(&str, &str)]) -> Directory {
    let peers = KMES.iter().filter(|name| **name != local).map(|name| kme(name));
    Directory::new(kme(local), peers, saes.iter().map(|(id, home)| (sae(id), kme(home)))).unwrap()
}

pub(crate) fn sae(id: &str) -> SaeId {
    id.parse().unwrap()
}

pub(crate) fn kme(id: &str) -> KmeId {
    id.parse().unwrap()
}

/// An SAE as a recipient.
pub(crate) fn to_sae(id: &str, home: &str) -> Recipient {
    Recipient { party: Party::Sae(sae(id)), kme: kme(home) }
}

/// A KME as a recipient.
pub(crate) fn to_kme(id: &str) -> Recipient {
    Recipient { party: Party::Kme(kme(id)), kme: kme(id) }
}
