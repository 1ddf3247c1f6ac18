//! Tests of the reserve on a real store. Only the other sites are a test double.

mod refills;
mod replicas;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Semaphore;

use kme::{
    BatchId, Clock, Key, KeyId, KeyMaterial, ManualClock, OsRandom, Party, Provenance, Random, SecretBytes,
    SourceGrade,
};

use super::*;
use crate::store::testing::{Counts, counts};
use crate::store::{ContentDigest, Entitlement, Inserted, KeyEncryptionKeys, NewBatch, Role, StoreSettings};

const TTL: Duration = Duration::from_hours(2);
const START: Timestamp = Timestamp::from_ms(1_795_392_000_000);

/// Makes batches as `KeyMaker` does, with another site that accepts all of them or none.
struct Double {
    store: Arc<Store>,
    clock: Arc<ManualClock>,
    master_refetch: bool,
    is_up: AtomicBool,
    /// Its site seems to answer, but accepts nothing.
    refuses: AtomicBool,
    made: AtomicUsize,
    /// How many keys each call asked for, and what for.
    asked: Mutex<Vec<(usize, Purpose)>>,
    refilled: Mutex<Vec<SaeId>>,
    /// Whether calls wait for a permit of `gate` before they make anything, or fail.
    is_held: AtomicBool,
    gate: Semaphore,
}

impl Double {
    /// Stores what is to be stored in one commit.
    async fn deliver(
        &self,
        master: &SaeId,
        recipient: &Recipient,
        number: usize,
        purpose: Purpose,
    ) -> Vec<LeasedBlock> {
        let (created_at, source) = (self.clock.now(), "site-a".parse().unwrap());
        let (expires_at, usable_until) = (created_at.plus(TTL), created_at.plus(TTL / 2));
        let master_too = Entitlement { party: Party::Sae(master.clone()), role: Role::Master };
        let entitled: Vec<_> = self.master_refetch.then_some(master_too).into_iter().collect();
        let grade = SourceGrade { entropy_sources: ["os".to_owned()].into(), pools: 3, hybrid_tls: true };
        let provenance = Arc::new(Provenance { grade: grade.clone(), expires_at });
        let block = |made: usize| {
            let ids = KeyId::draw_batch((number - made).min(64), &OsRandom).unwrap();
            LeasedBlock {
                batch_id: BatchId::draw(&OsRandom).unwrap(),
                entitled: entitled.clone(),
                leased_at: created_at,
                usable_until,
                created_at,
                provenance: Arc::clone(&provenance),
                keys: ids.into_iter().map(|id| Key { id, material: drawn() }).collect(),
            }
        };
        let blocks: Vec<LeasedBlock> = (0..number).step_by(64).map(block).collect();
        let mut batches = Vec::new();
        for block in &blocks {
            batches.push(NewBatch {
                batch_id: block.batch_id,
                source: &source,
                master,
                recipients: std::slice::from_ref(recipient),
                entitled: &entitled,
                content: ContentDigest([1; 32]),
                created_at,
                expires_at,
                copy_ends_at: None,
                keys: &block.keys,
            });
        }
        if purpose == Purpose::Ready {
            let inserted = self.store.insert_ready(&batches, &grade, usable_until).await.unwrap();
            assert_eq!(inserted, Inserted::Stored);
            return Vec::new();
        }
        if !entitled.is_empty() {
            assert_eq!(self.store.insert_batches(&batches).await.unwrap(), Inserted::Stored);
        }
        drop(batches);
        blocks
    }
}

impl Maker for Double {
    fn make<'a>(
        self: Arc<Self>,
        master: &'a SaeId,
        recipient: &'a Recipient,
        number: usize,
        purpose: Purpose,
    ) -> BoxFuture<'a, Result<Vec<LeasedBlock>, SupplyError>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push((number, purpose));
            if self.is_held.load(Ordering::SeqCst) {
                self.gate.acquire().await.unwrap().forget();
            }
            if !self.is_up.load(Ordering::SeqCst) || self.refuses.load(Ordering::SeqCst) {
                return Err(SupplyError::PeerUnavailable(recipient.kme.clone()));
            }
            self.made.fetch_add(1, Ordering::SeqCst);
            if purpose == Purpose::Ready {
                self.refilled.lock().unwrap().push(master.clone());
            }
            // Others get to run while a batch is being made.
            tokio::task::yield_now().await;
            Ok(self.deliver(master, recipient, number, purpose).await)
        })
    }

    fn is_reachable(&self, _recipient: &Recipient) -> bool {
        self.is_up.load(Ordering::SeqCst)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

fn drawn() -> KeyMaterial {
    let mut bytes = SecretBytes::zeroed(32);
    OsRandom.fill(bytes.expose_mut()).unwrap();
    KeyMaterial::new(bytes)
}

/// One site's files; daemons come and go.
struct Site {
    dir: tempfile::TempDir,
    url: String,
    clock: Arc<ManualClock>,
    master_refetch: bool,
    leased_max: u64,
}

/// One daemon's reserve.
struct Running {
    reserve: Arc<Reserve>,
    double: Arc<Double>,
    store: Arc<Store>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("site.db").display());
        KeyEncryptionKeys::create_file(&dir.path().join("kek"), &OsRandom).unwrap();
        Self {
            dir,
            url,
            clock: Arc::new(ManualClock::starting_at(START)),
            master_refetch: true,
            leased_max: 10_000,
        }
    }

    async fn start(&self, floor: u64, max: u64) -> Running {
        let settings = StoreSettings {
            url: self.url.clone(),
            kme: "site-a".parse().unwrap(),
            keks: KeyEncryptionKeys::from_file(&self.dir.path().join("kek")).unwrap(),
            migrate: true,
        };
        let store = Arc::new(Store::open(settings, self.clock.clone(), Arc::new(OsRandom)).await.unwrap());
        let double = Arc::new(Double {
            store: Arc::clone(&store),
            clock: Arc::clone(&self.clock),
            master_refetch: self.master_refetch,
            is_up: AtomicBool::new(true),
            refuses: AtomicBool::new(false),
            made: AtomicUsize::new(0),
            asked: Mutex::default(),
            refilled: Mutex::default(),
            is_held: AtomicBool::new(false),
            gate: Semaphore::new(0),
        });
        let parts = ReserveParts {
            maker: Arc::clone(&double) as _,
            store: Arc::clone(&store),
            local: "site-a".parse().unwrap(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        let settings = ReserveSettings {
            bounds: Bounds { floor, max, block: 64, delivery: 256 },
            pairs_max: 3,
            leased_max: self.leased_max,
            master_ttl: TTL,
        };
        Running { reserve: Reserve::new(parts, settings), double, store }
    }
}

impl Running {
    fn fill(&self) -> JoinHandle<()> {
        tokio::spawn(Arc::clone(&self.reserve).keep_filled())
    }

    fn set_up(&self, is_up: bool) {
        self.double.is_up.store(is_up, Ordering::SeqCst);
    }

    /// From now on what is being made is not done before [`Self::let_one_be_made`].
    fn hold(&self) {
        self.double.is_held.store(true, Ordering::SeqCst);
    }

    fn let_one_be_made(&self) {
        self.double.gate.add_permits(1);
    }

    /// What was asked of the maker, when it is so many calls.
    async fn asked(&self, calls: usize) -> Vec<(usize, Purpose)> {
        for _ in 0..1000 {
            let asked = self.double.asked.lock().unwrap().clone();
            if asked.len() >= calls {
                return asked;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the maker was not called {calls} times: {:?}", self.double.asked.lock().unwrap());
    }

    async fn take(&self, number: usize) -> Result<Vec<FreshKey>, SupplyError> {
        self.take_for(&alice(), number, &Demands::default()).await.map(|keys| keys.unwrap())
    }

    /// Takes keys as an order does.
    async fn take_for(
        &self,
        master: &SaeId,
        number: usize,
        demands: &Demands,
    ) -> Result<Option<Vec<FreshKey>>, SupplyError> {
        match self.reserve.take_ready(master, &bob(), number, demands) {
            Some(keys) => Ok(Some(keys)),
            None => self.reserve.lease_or_make(master, &bob(), number, demands).await,
        }
    }

    async fn count(&self) -> u64 {
        self.reserve.count(&alice(), &bob()).await
    }

    /// Only for a pair that was not used yet: use raises the target.
    async fn is_filled_to(&self, keys: u64) {
        self.has_at_least(keys).await;
        assert_eq!(self.count().await, keys);
    }

    async fn has_at_least(&self, keys: u64) {
        for _ in 0..1000 {
            if self.count().await >= keys {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} keys are ready, not {keys}", self.count().await);
    }
}

fn alice() -> SaeId {
    "alice".parse().unwrap()
}

fn bob() -> Recipient {
    Recipient { party: Party::Sae("bob".parse().unwrap()), kme: "site-b".parse().unwrap() }
}

fn ids(keys: &[FreshKey]) -> Vec<KeyId> {
    keys.iter().map(|fresh| fresh.key.id).collect()
}

#[tokio::test]
async fn keys_are_ready_before_anybody_asks_twice_and_the_count_is_true_at_every_step() {
    let site = Site::new();
    let run = site.start(64, 4096).await;
    let filling = run.fill();
    assert_eq!(run.count().await, 64, "a first look waits for the first keys");
    filling.abort();
    let _ = filling.await;
    run.set_up(false);
    for left in (0..64).rev() {
        run.take(1).await.unwrap();
        assert_eq!(run.count().await, left);
    }
    let refused = run.take(1).await;
    assert!(matches!(refused, Err(SupplyError::PeerUnavailable(_))), "{refused:?}");
    run.set_up(true);
    run.take(1).await.unwrap();
}

#[tokio::test]
async fn while_the_peer_is_away_what_is_ready_is_handed_out_and_nothing_twice() {
    let site = Site::new();
    let run = site.start(300, 4096).await;
    let _filling = run.fill();
    run.is_filled_to(300).await;
    run.set_up(false);
    let mut seen = HashSet::new();
    for number in [1, 8, 100, 150] {
        for id in ids(&run.take(number).await.unwrap()) {
            assert!(seen.insert(id), "{id} twice");
        }
    }
    // 41 are left: a request for more takes none of them.
    assert!(run.take(42).await.is_err());
    assert_eq!(run.count().await, 41);
    assert_eq!(run.take(41).await.unwrap().len(), 41);
    assert!(run.take(1).await.is_err());
    run.set_up(true);
    run.has_at_least(300).await;
}

#[tokio::test]
async fn what_is_in_memory_is_handed_out_at_once_unless_others_wait_for_it() {
    let site = Site::new();
    let run = site.start(640, 4096).await;
    let _filling = run.fill();
    run.is_filled_to(640).await;
    run.set_up(false);
    let (alice, bob) = (alice(), bob());
    let take_ready = |number| run.reserve.take_ready(&alice, &bob, number, &Demands::default());
    assert!(take_ready(1).is_none(), "all of it is in the store");
    let mut seen: HashSet<KeyId> = ids(&run.take(1).await.unwrap()).into_iter().collect();
    let mut taken = None;
    let cost = allocation_counter::measure(|| taken = take_ready(1));
    assert!(seen.insert(taken.unwrap()[0].key.id), "a key twice");
    assert_eq!(cost.count_total, 1, "the list of keys: {cost:?}");
    let pair = run.reserve.pair(&alice, &bob).unwrap();
    let waiting = pair.wait_for(1);
    assert!(take_ready(1).is_none());
    drop(waiting);
    assert!(take_ready(10_000).is_none());
    assert_eq!(take_ready(1).unwrap().len(), 1);
    assert_eq!(run.count().await, 637);
    run.reserve.close().await;
    assert!(take_ready(1).is_none(), "after the end");
}

#[tokio::test]
async fn a_crash_loses_what_was_leased_and_a_restart_hands_out_only_the_rest() {
    let site = Site::new();
    let run = site.start(192, 4096).await;
    let filling = run.fill();
    run.is_filled_to(192).await;
    filling.abort();
    let _ = filling.await;
    let mut seen: HashSet<KeyId> = ids(&run.take(3).await.unwrap()).into_iter().collect();
    let stored = run.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    assert!(stored < 192, "a block was leased");
    // The daemon dies here: nothing is given back.
    let again = site.start(192, 4096).await;
    again.set_up(false);
    assert_eq!(again.count().await, stored);
    for id in ids(&again.take(usize::try_from(stored).unwrap()).await.unwrap()) {
        assert!(seen.insert(id), "{id} was handed out before the crash");
    }
    assert!(again.take(1).await.is_err());
}

#[tokio::test]
async fn a_graceful_stop_gives_back_what_was_not_handed_out() {
    for master_refetch in [true, false] {
        let site = Site { master_refetch, ..Site::new() };
        let run = site.start(128, 4096).await;
        let filling = run.fill();
        run.is_filled_to(128).await;
        filling.abort();
        let _ = filling.await;
        let mut seen: HashSet<KeyId> = ids(&run.take(5).await.unwrap()).into_iter().collect();
        run.reserve.close().await;
        assert!(run.take_for(&alice(), 1, &Demands::default()).await.unwrap().is_none());
        run.store.close().await;
        let again = site.start(128, 4096).await;
        again.set_up(false);
        assert_eq!(again.count().await, 123, "refetch {master_refetch}");
        for id in ids(&again.take(123).await.unwrap()) {
            assert!(seen.insert(id), "{id} twice");
        }
    }
}

/// A reserve of 64 keys, of which five were handed out. The others wait in memory, and no more are made.
async fn with_59_leased(site: &Site) -> (Running, HashSet<KeyId>) {
    let run = site.start(64, 4096).await;
    let filling = run.fill();
    run.is_filled_to(64).await;
    filling.abort();
    let _ = filling.await;
    let seen: HashSet<KeyId> = ids(&run.take(5).await.unwrap()).into_iter().collect();
    run.set_up(false);
    assert_eq!((run.reserve.levels().leased, run.count().await), (59, 59));
    (run, seen)
}

#[tokio::test]
async fn leased_keys_that_waited_too_long_go_back_to_the_store_and_are_leased_again() {
    for master_refetch in [true, false] {
        let site = Site { master_refetch, ..Site::new() };
        let (run, mut seen) = with_59_leased(&site).await;
        site.clock.advance(kme::life::HOLD);
        assert!(run.reserve.take_ready(&alice(), &bob(), 1, &Demands::default()).is_none());
        assert_eq!(run.count().await, 59, "they are still of use");
        let made = run.double.made.load(Ordering::SeqCst);
        for number in [1, 2, 56] {
            for id in ids(&run.take(number).await.unwrap()) {
                assert!(seen.insert(id), "{id} twice");
            }
            assert_eq!(run.count().await, 64 - seen.len() as u64, "refetch {master_refetch}");
        }
        assert!(run.take(1).await.is_err());
        assert_eq!((seen.len(), run.double.made.load(Ordering::SeqCst)), (64, made));
    }
}

#[tokio::test]
async fn leased_keys_that_nobody_asks_for_go_back_to_the_store_by_themselves() {
    let site = Site::new();
    let (run, _) = with_59_leased(&site).await;
    let ready = async || run.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    site.clock.advance(kme::life::HOLD.saturating_sub(Duration::from_millis(1)));
    run.reserve.tidy().await;
    assert_eq!((run.reserve.levels().leased, ready().await), (59, 0));
    site.clock.advance(Duration::from_millis(1));
    run.reserve.tidy().await;
    let levels = run.reserve.levels();
    assert_eq!((levels.leased, levels.stored, ready().await), (0, 59, 59));
    // A daemon that dies now loses none of them.
    let again = site.start(64, 4096).await;
    again.set_up(false);
    assert_eq!(again.take(59).await.unwrap().len(), 59);
}

#[tokio::test]
async fn concurrent_requests_of_one_pair_share_batches() {
    let site = Site::new();
    let run = site.start(0, 4096).await;
    let callers = (0..40).map(|_| run.take(2));
    let taken = futures_util::future::join_all(callers).await;
    let all: HashSet<KeyId> = taken.into_iter().flat_map(|keys| ids(&keys.unwrap())).collect();
    assert_eq!(all.len(), 80);
    let made = run.double.made.load(Ordering::SeqCst);
    assert!(made <= 4, "{made} batches for 40 requests that came together");
}

#[tokio::test]
async fn one_request_may_need_several_batches_and_still_gets_all_or_none() {
    let site = Site::new();
    let run = site.start(0, 4096).await;
    assert_eq!(run.take(200).await.unwrap().len(), 200);
    run.set_up(false);
    let left = run.count().await;
    assert!(run.take(usize::try_from(left).unwrap() + 1).await.is_err());
    assert_eq!(run.count().await, left);
}

#[tokio::test]
async fn keys_past_half_of_their_life_are_not_handed_out() {
    let site = Site::new();
    let run = site.start(64, 4096).await;
    let filling = run.fill();
    run.is_filled_to(64).await;
    filling.abort();
    let _ = filling.await;
    run.take(1).await.unwrap();
    run.set_up(false);
    site.clock.advance(TTL / 2);
    assert_eq!(run.count().await, 0);
    assert!(run.take(1).await.is_err());
    while run.store.sweep(100).await.unwrap().any() {}
}

#[tokio::test]
async fn pairs_do_not_share_keys_and_too_many_pairs_are_served_on_demand() {
    let site = Site::new();
    let run = site.start(0, 4096).await;
    let mut seen = HashSet::new();
    for master in ["alice", "dave", "x"] {
        let master: SaeId = master.parse().unwrap();
        let keys = run.take_for(&master, 3, &Demands::default()).await.unwrap().unwrap();
        assert!(ids(&keys).into_iter().all(|id| seen.insert(id)));
    }
    let fourth: SaeId = "y".parse().unwrap();
    assert!(run.take_for(&fourth, 1, &Demands::default()).await.unwrap().is_none());
    assert_eq!(run.reserve.count(&fourth, &bob()).await, 0);
}

#[tokio::test]
async fn demands_that_ready_keys_do_not_meet_are_not_for_the_reserve() {
    let site = Site::new();
    let run = site.start(64, 4096).await;
    let _filling = run.fill();
    run.is_filled_to(64).await;
    run.take(1).await.unwrap();
    let ask = async |demands: Demands| run.take_for(&alice(), 1, &demands).await.unwrap();
    assert!(ask(Demands { min_pools: Some(3), ..Demands::default() }).await.is_some());
    assert!(ask(Demands { min_pools: Some(4), ..Demands::default() }).await.is_none());
    assert!(ask(Demands { min_lifetime: Some(2 * TTL), ..Demands::default() }).await.is_none());
}

#[tokio::test]
async fn an_idle_pair_makes_no_more_keys_and_those_it_has_go_by_their_expiry() {
    let site = Site::new();
    let run = site.start(64, 4096).await;
    let _filling = run.fill();
    run.is_filled_to(64).await;
    let made = run.double.made.load(Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::advance(Duration::from_hours(1)).await;
    tokio::time::resume();
    while run.reserve.levels().pairs > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ready = async || run.store.ready_count(pair_of(&alice(), &bob())).await.unwrap();
    assert_eq!(ready().await, 64, "they are of use until their time is over");
    site.clock.advance(TTL / 2);
    assert_eq!(ready().await, 0);
    site.clock.advance(TTL / 2);
    while run.store.sweep(100).await.unwrap().any() {}
    assert_eq!(counts(&run.store).await, Counts::default());
    // Longer than the task's interval between two looks at all pairs.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(run.double.made.load(Ordering::SeqCst), made);
}

#[tokio::test]
async fn refills_go_round_the_pairs() {
    let site = Site::new();
    let run = site.start(640, 4096).await;
    let masters: Vec<SaeId> = ["alice", "dave", "x"].map(|id| id.parse().unwrap()).into();
    run.set_up(false);
    for master in &masters {
        assert_eq!(run.reserve.count(master, &bob()).await, 0);
    }
    run.set_up(true);
    let _filling = run.fill();
    run.is_filled_to(640).await;
    let order = run.double.refilled.lock().unwrap().clone();
    for part in order.chunks(6).take(3) {
        for master in &masters {
            assert!(part.contains(master), "{master} waits while others are served: {order:?}");
        }
    }
}

fn pair_of<'a>(master: &'a SaeId, recipient: &'a Recipient) -> crate::store::ReadyPair<'a> {
    crate::store::ReadyPair { master, recipient }
}
