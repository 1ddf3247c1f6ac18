//! ETSI GS QKD 014 as a router answers it, over a real store and a key source that notes its orders.

mod dec_keys;
mod enc_keys;
mod everywhere;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::*;
use crate::delivery::{Admission, DeliveryRules, KeySource, Order, RetrievalPolicy};
use crate::identity::{AuthenticatedKme, AuthenticatedSae, ClientIdentity, Identity};
use crate::kme::{
    BatchId, Clock as _, Directory, Key, KeyId, KeyMaterial, ManualClock, OsRandom, Party, Recipient,
    SecretBytes, Timestamp,
};
use crate::store::{
    ContentDigest, Entitlement, KeyEncryptionKeys, NewBatch, RetrievalMode, Role, Store, StoreSettings,
};
use crate::supply::SupplyError;

const HOUR: Duration = Duration::from_hours(1);

/// What the key source is to do with the next order.
#[derive(Default)]
enum Mood {
    #[default]
    Make,
    Fail(fn() -> SupplyError),
    Panic,
    Hang,
}

#[derive(Default)]
struct Source {
    orders: Mutex<Vec<(String, Vec<Recipient>, usize, usize)>>,
    mood: Mutex<Mood>,
}

impl KeySource for Source {
    fn make<'a>(&'a self, order: Order<'a>) -> BoxFuture<'a, Result<Vec<Key>, SupplyError>> {
        Box::pin(async move {
            let noted = (order.master.to_string(), order.recipients.to_vec(), order.number, order.key_bytes);
            let failure = match &*self.mood.lock().unwrap() {
                Mood::Make => None,
                Mood::Fail(error) => Some(Some(error())),
                Mood::Panic => panic!("seeded"),
                Mood::Hang => Some(None),
            };
            match failure {
                None => {}
                Some(Some(error)) => return Err(error),
                Some(None) => std::future::pending().await,
            }
            self.orders.lock().unwrap().push(noted);
            Ok(KeyId::draw_batch(order.number, &OsRandom)
                .unwrap()
                .into_iter()
                .map(|id| Key { id, material: material(id, order.key_bytes) })
                .collect())
        })
    }

    fn deliverable_now(&self, _: &[Recipient]) -> u32 {
        7
    }
}

/// A key that its ID tells, so that tests can check that the right one came.
fn material(id: KeyId, bytes: usize) -> KeyMaterial {
    KeyMaterial::new(SecretBytes::take(id.as_bytes().iter().copied().cycle().take(bytes).collect()))
}

/// Site-a, where alice and dave live; bob and carol live at site-b, erin at site-c.
struct World {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    source: Arc<Source>,
    clock: Arc<ManualClock>,
    router: Router,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
enum As {
    Sae(&'static str),
    Kme(&'static str),
    Operator,
    Nobody,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_else(|| panic!("no message: {}", self.body))
    }
}

fn rules() -> DeliveryRules {
    DeliveryRules {
        limits: KeyLimits {
            size_bits: 256,
            min_size_bits: 64,
            max_size_bits: 1024,
            max_per_request: 10,
            max_stored_per_pair: 100,
            max_additional_saes: 2,
        },
        admission: Admission::Chain,
        retrieval: RetrievalPolicy::STRICT,
    }
}

impl World {
    async fn new() -> Self {
        Self::with(rules()).await
    }

    async fn with(rules: DeliveryRules) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        KeyEncryptionKeys::create_file(&kek, &OsRandom).unwrap();
        let settings = StoreSettings {
            url: format!("sqlite://{}", dir.path().join("site-a.db").display()),
            keks: KeyEncryptionKeys::from_file(&kek).unwrap(),
            migrate: true,
        };
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_ms(1_795_392_000_000)));
        let store = Arc::new(Store::open(settings, clock.clone(), Arc::new(OsRandom)).await.unwrap());
        let source = Arc::new(Source::default());
        let kme = |id: &str| id.parse().unwrap();
        let saes = [
            ("alice", "site-a"),
            ("dave", "site-a"),
            ("bob", "site-b"),
            ("carol", "site-b"),
            ("erin", "site-c"),
            ("odd name/é", "site-b"),
        ];
        let saes = saes.map(|(sae, site)| (sae.parse().unwrap(), kme(site)));
        let directory = Directory::new(kme("site-a"), [kme("site-b"), kme("site-c")], saes).unwrap();
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        let delivery = Delivery::new(directory, rules, store.clone(), source.clone());
        let limits = EdgeLimits { max_concurrent: 8, timeout: Duration::from_secs(20) };
        let router = router(Arc::new(delivery), limits, TaskTracker::new());
        Self { _dir: dir, store, source, clock, router }
    }

    async fn send(&self, caller: As, request: Request<Body>) -> Reply {
        let mut request = request;
        let identity = match caller {
            As::Sae(id) => Ok(Identity::Sae(AuthenticatedSae::for_tests(id))),
            As::Kme(id) => Ok(Identity::Kme(AuthenticatedKme::for_tests(id))),
            As::Operator => Ok(Identity::Operator("olga".to_owned())),
            As::Nobody => Err(crate::identity::IdentityError::Nameless),
        };
        request.extensions_mut().insert(ClientIdentity::new(identity));
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| panic!("{}: {}", parts.status, String::from_utf8_lossy(&bytes)));
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, caller: As, path: &str) -> Reply {
        self.send(caller, Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, caller: As, path: &str, body: &str) -> Reply {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(caller, request.body(Body::from(body.to_owned())).unwrap()).await
    }

    fn orders(&self) -> usize {
        self.source.orders.lock().unwrap().len()
    }

    /// A key that bob at site-b fetched for `parties`, all of them here.
    async fn stored(&self, parties: &[Party]) -> KeyId {
        self.stored_until(parties, self.clock.now().plus(HOUR)).await
    }

    async fn stored_until(&self, parties: &[Party], expires_at: Timestamp) -> KeyId {
        let id = KeyId::draw(&OsRandom).unwrap();
        let at = |party: &Party| Recipient { party: party.clone(), kme: "site-a".parse().unwrap() };
        let held = |party: &Party| Entitlement { party: party.clone(), role: Role::Slave };
        let batch = NewBatch {
            batch_id: BatchId::draw(&OsRandom).unwrap(),
            source: &"site-b".parse().unwrap(),
            master: &"bob".parse().unwrap(),
            recipients: &parties.iter().map(at).collect::<Vec<_>>(),
            entitled: &parties.iter().map(held).collect::<Vec<_>>(),
            content: ContentDigest([1; 32]),
            created_at: self.clock.now(),
            expires_at,
            keys: &[Key { id, material: material(id, 32) }],
        };
        self.store.insert_batch(&batch).await.unwrap();
        id
    }
}

fn sae(id: &str) -> Party {
    Party::Sae(id.parse().unwrap())
}

fn here() -> Party {
    Party::Kme("site-a".parse().unwrap())
}

fn key_of(id: KeyId) -> Value {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode(material(id, 32).expose());
    json!({ "key_ID": id.to_string(), "key": key })
}
