//! A push's times, and what one peer may have stored or hold up here.

use std::collections::HashMap;

use kme::{KeyId, KeyLimits, KeyMaterial, ManualClock, OsRandom, Party, PoolSetId, SecretBytes, Seed};

use super::*;
use crate::metrics::{LimitMeter, registry};
use crate::pool::{PoolServers, PoolServersSettings, RecipientSetsSettings};
use crate::store::{KeyEncryptionKeys, Role, StoreSettings, Stored};
use crate::supply::{PeerQuota, QuotaTable};

const NOW: Timestamp = Timestamp::from_ms(1_795_392_000_000);
const SKEW: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_hours(1);

fn pushed(created_at: Timestamp, expires_at: Timestamp) -> BatchMetadata {
    BatchMetadata {
        batch_id: BatchId::draw(&OsRandom).unwrap(),
        suite: blast::SUITE.to_owned(),
        pool_set: AnnouncedSet {
            id: PoolSetId::draw(&OsRandom).unwrap(),
            pools: Vec::new(),
            words: 1 << 14,
            expires_at,
        },
        seed: Seed::draw(&OsRandom).unwrap(),
        mask_seed: Seed::draw(&OsRandom).unwrap(),
        words_per_pool: 180,
        key_bytes: 32,
        key_ids: KeyId::draw_batch(1, &OsRandom).unwrap(),
        master: "alice".parse().unwrap(),
        recipients: vec![Recipient {
            party: Party::Sae("bob".parse().unwrap()),
            kme: "site-b".parse().unwrap(),
        }],
        created_at,
        expires_at,
        confirm: blast::Confirm::from_bytes([0; 16]),
    }
}

fn kme(id: &str) -> KmeId {
    id.parse().unwrap()
}

/// As site-b sees it.
fn directory() -> Directory {
    let saes = [("alice", "site-a"), ("bob", "site-b")];
    let saes = saes.map(|(sae, home)| (sae.parse().unwrap(), kme(home)));
    Directory::new(kme("site-b"), [kme("site-a"), kme("site-c")], saes).unwrap()
}

fn rules() -> IntakeRules {
    IntakeRules {
        limits: KeyLimits {
            size_bits: 256,
            min_size_bits: 8,
            max_size_bits: 65_536,
            max_per_request: 128,
            max_stored_per_pair: 4096,
            max_additional_saes: 8,
        },
        clock_skew_max: SKEW,
        body_max_bytes: 1 << 18,
    }
}

fn judged(created_at: Timestamp, expires_at: Timestamp) -> Result<usize, String> {
    judge(&pushed(created_at, expires_at))
}

fn judge(batch: &BatchMetadata) -> Result<usize, String> {
    let (rules, directory, key_ttl_max) = (rules(), directory(), 2 * HOUR);
    let checked =
        Checked { rules: &rules, key_ttl_max, directory: &directory, source: &kme("site-a"), batch };
    checked.entitled_here(NOW).map(|entitled| entitled.len()).map_err(|error| error.to_string())
}

#[test]
fn clocks_may_differ_by_the_allowed_skew_in_both_directions_and_no_further() {
    for created_at in [NOW.minus(SKEW), NOW, NOW.plus(SKEW)] {
        assert_eq!(judged(created_at, created_at.plus(HOUR)), Ok(1));
    }
    let more = SKEW + Duration::from_millis(1);
    for created_at in [NOW.minus(more), NOW.plus(more)] {
        let refused = judged(created_at, created_at.plus(HOUR)).unwrap_err();
        assert!(refused.contains("the clocks differ"), "{refused}");
    }
}

/// The store finds a batch by these bytes.
#[test]
fn a_batch_whose_key_ids_do_not_share_six_bytes_is_refused() {
    let mut batch = pushed(NOW, NOW.plus(HOUR));
    batch.key_ids = KeyId::draw_batch(2, &OsRandom).unwrap();
    assert_eq!(judge(&batch), Ok(1));
    batch.key_ids.extend(KeyId::draw_batch(1, &OsRandom).unwrap());
    let refused = judge(&batch).unwrap_err();
    assert!(refused.contains("share their first six bytes"), "{refused}");
}

#[test]
fn a_batch_that_has_ended_or_would_live_too_long_is_refused() {
    assert!(judged(NOW, NOW).unwrap_err().contains("expired"));
    assert!(judged(NOW, NOW.plus(2 * HOUR)).is_ok());
    let refused = judged(NOW, NOW.plus(2 * HOUR + SKEW)).unwrap_err();
    assert_eq!(
        refused,
        "these keys would live 7230 s (keys.ttl at KME site-a); at KME site-b they may live 7200 s \
         (limits.kme.key_ttl_max)"
    );
}

#[test]
fn a_site_whose_requests_must_be_short_takes_one_batch_at_once() {
    let batches = |body_max_bytes| IntakeRules { body_max_bytes, ..rules() }.batches_per_push();
    assert_eq!((batches(16 << 10), batches((64 << 10) - 1)), (1, 1));
    assert_eq!(batches(64 << 10), BATCHES_PER_PUSH_MAX);
}

/// The intake of site-b, where every peer has this quota.
struct Site {
    intake: Arc<Intake>,
    store: Arc<Store>,
    clock: Arc<ManualClock>,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn with(most: Stored) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        KeyEncryptionKeys::create_file(&kek, &OsRandom).unwrap();
        let settings = StoreSettings {
            url: format!("sqlite://{}", dir.path().join("site.db").display()),
            kme: kme("site-b"),
            keks: KeyEncryptionKeys::from_file(&kek).unwrap(),
            migrate: true,
        };
        let clock = Arc::new(ManualClock::starting_at(NOW));
        let store = Store::open(settings, clock.clone(), Arc::new(OsRandom)).await.unwrap();
        let store = Arc::new(store);
        let settings = PoolServersSettings {
            pools_per_set: 2,
            pools_min: 2,
            set_timeout: Duration::from_secs(5),
            reads_expected: BTreeMap::new(),
        };
        let servers =
            PoolServers::new(kme("site-b"), Vec::new(), settings, clock.clone(), Arc::new(OsRandom));
        let settings = RecipientSetsSettings {
            pools_min: 2,
            sets_per_source_max: 4,
            words_max: 1 << 14,
            life_max: HOUR,
            memory_max_bytes: 1 << 20,
        };
        let sets = RecipientSets::new(servers, settings, clock.clone());
        let quota = PeerQuota { most, key_ttl_max: 2 * HOUR };
        let table = QuotaTable {
            saes: HashMap::new(),
            other_saes: Stored::UNBOUNDED,
            peers: ["site-a", "site-c"].map(|peer| (kme(peer), quota)).into(),
        };
        let usage = Arc::clone(store.usage());
        let quotas = Quotas::new(kme("site-b"), table, usage, LimitMeter::default());
        let directory = directory();
        let meter = Arc::new(SupplyMeter::register(&mut registry(), directory.peers()));
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        let intake = Intake::new(directory, rules(), sets, Arc::clone(&store), quotas, clock.clone(), meter);
        Self { intake, store, clock, _dir: dir }
    }

    async fn void(&self, source: &str, batch_id: BatchId) -> Result<VoidAnswer, IntakeError> {
        // The caller would like it to last for a year.
        let expires_at = NOW.plus(365 * 24 * HOUR);
        let request = VoidRequest { batch_id, key_ids: Vec::new(), expires_at };
        self.intake.void(&testkit::authenticated_kme(source), &request).await
    }

    /// A batch that is here already.
    async fn stored(&self) -> BatchId {
        let batch = pushed(NOW, NOW.plus(HOUR));
        let material = || KeyMaterial::new(SecretBytes::take(vec![7; 32]));
        let key = |id: &KeyId| Key { id: *id, material: material() };
        let keys: Vec<Key> = batch.key_ids.iter().map(key).collect();
        let (master, recipients) = (batch.master.clone(), batch.recipients.clone());
        let made = Regenerated {
            batch_id: batch.batch_id,
            master,
            recipients,
            entitled: vec![Entitlement { party: batch.recipients[0].party.clone(), role: Role::Slave }],
            content: [1; 32],
            created_at: batch.created_at,
            expires_at: batch.expires_at,
            keys,
        };
        self.intake.insert(&kme("site-a"), &[made]).await.unwrap();
        batch.batch_id
    }
}

fn new_id() -> BatchId {
    BatchId::draw(&OsRandom).unwrap()
}

#[tokio::test]
async fn a_peer_has_so_many_tombstones_for_as_long_as_a_push_could_be_accepted_and_what_is_here_is_voided_anyway()
 {
    let site = Site::with(Stored { tombstones: 3, ..Stored::UNBOUNDED }).await;
    for _ in 0..3 {
        site.void("site-a", new_id()).await.unwrap();
    }
    for _ in 0..2 {
        let refused = site.void("site-a", new_id()).await.unwrap_err();
        assert!(matches!(refused, IntakeError::Full(_)), "{refused}");
        assert!(refused.to_string().contains("KME site-a may have no more tombstones"), "{refused}");
    }
    site.void("site-c", new_id()).await.unwrap();
    let here = site.stored().await;
    assert_eq!(site.void("site-a", here).await.unwrap().voided.len(), 1);

    site.clock.advance(2 * SKEW);
    assert_eq!(site.store.sweep(100).await.unwrap().tombstones, 0);
    site.clock.advance(STORING_MAX);
    assert_eq!(site.store.sweep(100).await.unwrap().tombstones, 4);
    site.store.count_stored().await.unwrap();
    site.void("site-a", new_id()).await.unwrap();
}

#[tokio::test]
async fn a_peer_over_its_quota_of_keys_is_refused_before_anything_is_done() {
    let site = Site::with(Stored { keys: 2, ..Stored::UNBOUNDED }).await;
    let mut batch = pushed(NOW, NOW.plus(HOUR));
    batch.key_ids = KeyId::draw_batch(3, &OsRandom).unwrap();
    let site_a = testkit::authenticated_kme("site-a");
    let refused = site.intake.accept_batches(&site_a, vec![batch]).await.unwrap_err();
    assert!(matches!(refused, IntakeError::Full(_)), "{refused}");
    // Within its quota, it is refused for its pools, and then nothing is held for it.
    for _ in 0..5 {
        let batch = pushed(NOW, NOW.plus(HOUR));
        let refused = site.intake.accept_batches(&site_a, vec![batch]).await.unwrap_err();
        assert!(!matches!(refused, IntakeError::Full(_)), "{refused}");
    }
}

#[tokio::test]
async fn pools_that_cannot_be_had_hold_up_nobody_and_peers_have_places_of_their_own() {
    let site = Site::with(Stored::UNBOUNDED).await;
    let all = site.intake.in_work[&kme("site-a")].acquire_many(16).await.unwrap();
    // It does not wait for a place.
    let site_a = testkit::authenticated_kme("site-a");
    let push = site.intake.accept_batches(&site_a, vec![pushed(NOW, NOW.plus(HOUR))]);
    let refused = tokio::time::timeout(Duration::from_secs(30), push).await.unwrap().unwrap_err();
    assert!(matches!(refused, IntakeError::TooFewPools { .. }), "{refused}");
    assert_eq!(site.intake.in_work[&kme("site-c")].available_permits(), IN_WORK_MAX);
    drop(all);
}

/// A push of several batches of one set.
fn pushed_together(key_counts: &[usize]) -> Vec<BatchMetadata> {
    let set = pushed(NOW, NOW.plus(HOUR)).pool_set;
    let batch = |count: &usize| BatchMetadata {
        pool_set: set.clone(),
        key_ids: KeyId::draw_batch(*count, &OsRandom).unwrap(),
        ..pushed(NOW, NOW.plus(HOUR))
    };
    key_counts.iter().map(batch).collect()
}

#[tokio::test]
async fn a_push_has_one_to_four_batches_of_one_set_and_each_of_them_keeps_every_rule() {
    let site = Site::with(Stored::UNBOUNDED).await;
    let site_a = testkit::authenticated_kme("site-a");
    let refused = async |batches| site.intake.accept_batches(&site_a, batches).await.unwrap_err().to_string();
    assert_eq!(refused(Vec::new()).await, "a push has 1 to 4 batches");
    assert_eq!(refused(pushed_together(&[1; 5])).await, "a push has 1 to 4 batches");
    let other_set = vec![pushed(NOW, NOW.plus(HOUR)), pushed(NOW, NOW.plus(HOUR))];
    assert_eq!(refused(other_set).await, "all batches of a push are of one pool set");
    let mut last_is_old = pushed_together(&[1; 4]);
    last_is_old[3].created_at = NOW.minus(2 * SKEW);
    assert!(refused(last_is_old).await.contains("the clocks differ"));
    let mut last_is_not_of_the_caller = pushed_together(&[1; 4]);
    last_is_not_of_the_caller[3].master = "bob".parse().unwrap();
    assert!(refused(last_is_not_of_the_caller).await.contains("SAE bob lives at KME site-b"));
    // Only its pools are wrong with this one.
    assert!(refused(pushed_together(&[1; 4])).await.contains("this site accepts keys of 2 or more"));
    let info = site.intake.info(&site_a).unwrap();
    assert_eq!(info.limits.max_batches_per_push, 4, "what it says is what it takes");
}

#[tokio::test]
async fn a_quota_counts_all_batches_of_a_push_and_after_a_refusal_none() {
    let site = Site::with(Stored { keys: 7, ..Stored::UNBOUNDED }).await;
    let site_a = testkit::authenticated_kme("site-a");
    let push = async |counts: &[usize]| {
        let batches = pushed_together(counts);
        site.intake.accept_batches(&site_a, batches).await.unwrap_err()
    };
    for _ in 0..5 {
        let full = push(&[3, 2, 3]).await;
        assert!(matches!(full, IntakeError::Full(_)), "{full}");
        // It fits, and is refused for its pools.
        let fits = push(&[3, 2, 2]).await;
        assert!(matches!(fits, IntakeError::TooFewPools { .. }), "{fits}");
    }
}
