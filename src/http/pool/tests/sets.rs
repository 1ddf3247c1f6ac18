//! Pool clients and pool sets against real pool servers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use kme::{Clock, KmeId, ManualClock, OsRandom, PoolSetId};

use crate::http::pool::testing::{
    Caller, POOL_BYTES, TestServer, WORDS, client_of_nobody, limits, manual_clock,
};
use crate::pool::*;

pub(super) const A: Caller = Caller::Kme("site-a");
pub(super) const B: Caller = Caller::Kme("site-b");
pub(super) const TTL: Duration = Duration::from_mins(10);

pub(super) fn kme(name: &str) -> KmeId {
    name.parse().unwrap()
}

pub(super) fn group(names: &[&str]) -> BTreeSet<KmeId> {
    names.iter().map(|name| kme(name)).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits until a background task has made `condition` true.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "never happened: {what}");
}

pub(super) async fn three_servers(clock: &Arc<ManualClock>) -> Vec<TestServer> {
    let mut servers = Vec::new();
    for name in ["pool-1", "pool-2", "pool-3"] {
        servers.push(TestServer::start_with(name, limits(), clock.clone()).await);
    }
    servers
}

pub(super) fn pool_servers(
    clients: Vec<PoolClient>,
    local: &str,
    clock: &Arc<ManualClock>,
) -> Arc<PoolServers> {
    let settings = PoolServersSettings {
        pools_per_set: 3,
        pools_min: 2,
        set_timeout: Duration::from_secs(20),
        reads_expected: BTreeMap::new(),
    };
    PoolServers::new(kme(local), clients, settings, clock.clone(), Arc::new(OsRandom))
}

pub(super) fn servers_as(
    servers: &[TestServer],
    caller: Caller,
    clock: &Arc<ManualClock>,
) -> Arc<PoolServers> {
    let Caller::Kme(local) = caller else { panic!("only KMEs hold sets") };
    pool_servers(servers.iter().map(|server| server.client(caller)).collect(), local, clock)
}

/// An announcer that records its sets, or refuses them.
#[derive(Default)]
struct Announcer {
    told: Mutex<Vec<AnnouncedSet>>,
    refuses: bool,
}

impl SetAnnouncer for Announcer {
    fn announce(&self, set: Arc<PoolSet>) -> Announcing<'_> {
        self.told.lock().unwrap().push(set.announcement());
        let refuses = self.refuses;
        let refusal = || AnnounceError { trouble: None, cause: "not now".into() };
        Box::pin(async move { if refuses { Err(refusal()) } else { Ok(()) } })
    }
}

pub(super) fn source_settings() -> SourceSetsSettings {
    SourceSetsSettings {
        words_initial: WORDS,
        words_max: 4 * WORDS,
        ttl: TTL,
        expiry_margin: Duration::from_secs(30),
        groups_max: 4,
        memory_max_bytes: 64 << 20,
    }
}

pub(super) fn recipient_settings() -> RecipientSetsSettings {
    RecipientSetsSettings {
        sets_per_source_max: 2,
        pools_min: 2,
        words_max: 4 * WORDS,
        life_max: Duration::from_hours(1),
        memory_max_bytes: 64 << 20,
    }
}

struct Site {
    servers: Vec<TestServer>,
    clock: Arc<ManualClock>,
    announcer: Arc<Announcer>,
    sets: Arc<SourceSets>,
}

impl Site {
    async fn with(settings: SourceSetsSettings, announcer: Announcer) -> Self {
        let clock = manual_clock();
        let servers = three_servers(&clock).await;
        let announcer = Arc::new(announcer);
        let sets =
            SourceSets::new(servers_as(&servers, A, &clock), announcer.clone(), settings, clock.clone());
        Self { servers, clock, announcer, sets }
    }

    async fn new() -> Self {
        Self::with(source_settings(), Announcer::default()).await
    }

    fn pools(&self) -> usize {
        self.servers.iter().map(|server| server.vault.pool_count()).sum()
    }

    fn announced(&self) -> usize {
        self.announcer.told.lock().unwrap().len()
    }
}

#[tokio::test]
async fn a_batch_that_comes_again_costs_nothing_and_one_that_was_refused_still_does() {
    let site = Site::new().await;
    let set = site.sets.acquire(&group(&["site-b"]), 0).await.unwrap();
    let total = set.total_bits();
    for _ in 0..3 {
        set.spend_once(1_000, [1; 32]).unwrap();
    }
    assert_eq!(set.left_bits(), total - 1_000);
    assert!(set.spend_once(total, [2; 32]).is_err());
    assert!(set.spend_once(total, [2; 32]).is_err(), "nothing was paid for it");
    set.spend_once(total - 1_000, [2; 32]).unwrap();
    set.spend_once(total - 1_000, [2; 32]).unwrap();
    assert_eq!(set.left_bits(), 0);
}

#[tokio::test]
async fn a_client_downloads_exactly_the_pool() {
    let server = TestServer::start("pool-1", limits()).await;
    let (owner, reader) = (server.client(A), server.client(B));
    let made = owner.create(WORDS, vec![kme("site-a"), kme("site-b")], TTL).await.unwrap();
    let mine = owner.download(made.pool_id, WORDS, soon()).await.unwrap();
    let theirs = reader.download(made.pool_id, WORDS, soon()).await.unwrap();
    assert_eq!(mine.len_words(), WORDS);
    assert!(mine.as_words() == theirs.as_words());
    assert!(mine.as_words().iter().any(|word| *word != 0));
    for words in [WORDS / 2, WORDS * 2] {
        let wrong = owner.download(made.pool_id, words, soon()).await;
        assert!(matches!(wrong, Err(PoolClientError::WrongLength { .. })), "{wrong:?}");
    }
    owner.release(made.pool_id).await.unwrap();
    owner.release(made.pool_id).await.unwrap();
    let gone = reader.download(made.pool_id, WORDS, soon()).await;
    assert!(matches!(gone, Err(PoolClientError::Refused { status: StatusCode::NOT_FOUND, .. })), "{gone:?}");
}

#[tokio::test]
async fn client_errors_say_who_is_to_blame() {
    let small = VaultLimits { memory_max_bytes: 2 * POOL_BYTES, ..limits() };
    let server = TestServer::start("pool-1", small).await;
    let readers = || vec![kme("site-a")];
    server.client(A).create(WORDS, readers(), TTL).await.unwrap();
    let full = server.client(A).create(WORDS, readers(), TTL).await;
    assert!(matches!(full, Err(PoolClientError::Busy { .. })), "{full:?}");
    let refused = server.client(Caller::Sae("site-a")).create(WORDS, readers(), TTL).await;
    assert!(
        matches!(refused, Err(PoolClientError::Refused { status: StatusCode::UNAUTHORIZED, .. })),
        "{refused:?}"
    );
    let nobody = client_of_nobody("pool-1", A).await.create(WORDS, readers(), TTL).await;
    assert!(matches!(nobody, Err(PoolClientError::Unreachable { .. })), "{nobody:?}");
}

#[tokio::test]
async fn a_restarted_server_has_lost_every_pool() {
    let server = TestServer::start("pool-1", limits()).await;
    let made = server.client(A).create(WORDS, vec![kme("site-a")], TTL).await.unwrap();
    let server = server.restarted().await;
    let lost = server.client(A).download(made.pool_id, WORDS, soon()).await;
    assert!(matches!(lost, Err(PoolClientError::Refused { status: StatusCode::NOT_FOUND, .. })), "{lost:?}");
}

#[tokio::test]
async fn a_recipient_fetches_the_very_pools_in_the_very_order() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let made = servers_as(&servers, A, &clock).make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    assert_eq!(made.expires_at(), clock.now().plus(TTL));
    let fetched =
        servers_as(&servers, B, &clock).fetch_set(&kme("site-a"), &made.announcement()).await.unwrap();
    assert_eq!(made.announcement(), fetched.announcement());
    assert_eq!(made.sources().len(), 3);
    for (here, there) in made.sources().iter().zip(fetched.sources()) {
        assert_eq!(here.id, there.id);
        assert!(here.words == there.words);
    }
    let stranger = servers_as(&servers, Caller::Kme("site-c"), &clock)
        .fetch_set(&kme("site-a"), &made.announcement())
        .await;
    assert!(matches!(stranger, Err(PoolSetError::Fetch(PoolClientError::Refused { .. }))), "{stranger:?}");
}

#[tokio::test]
async fn two_servers_of_three_are_enough_and_one_is_not() {
    let clock = manual_clock();
    let mut servers = three_servers(&clock).await;
    drop(servers.pop());
    let mut clients: Vec<PoolClient> = servers.iter().map(|server| server.client(A)).collect();
    clients.push(client_of_nobody("pool-3", A).await);
    let two = pool_servers(clients, "site-a", &clock);
    let set = two.make_set(&group(&[]), WORDS, TTL).await.unwrap();
    assert_eq!(set.sources().len(), 2);
    assert_eq!(two.usable_for(&group(&[])), 2, "the server that failed is left alone for a while");

    let one = pool_servers(
        vec![servers[0].client(A), client_of_nobody("pool-2", A).await, client_of_nobody("pool-3", A).await],
        "site-a",
        &clock,
    );
    let before = servers[0].vault.pool_count();
    match one.make_set(&group(&[]), WORDS, TTL).await {
        Err(error @ PoolSetError::TooFewServers { answered: 1, needed: 2, .. }) => {
            let text = error.to_string();
            assert!(["pool-2", "pool-3"].iter().all(|name| text.contains(name)), "{text}");
        }
        other => panic!("{other:?}"),
    }
    eventually("the lone pool is released", || servers[0].vault.pool_count() == before).await;
}

#[tokio::test]
async fn announcements_that_break_a_rule_are_refused_without_a_download() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let here = servers_as(&servers, B, &clock);
    let set = servers_as(&servers, A, &clock).make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    let good = set.announcement();
    let mut bad = vec![good.clone(); 6];
    bad[0].pools.truncate(1);
    bad[1].pools = vec![good.pools[0].clone(), good.pools[0].clone()];
    bad[2].pools[0].server = "pool-9".parse().unwrap();
    bad[3].words = WORDS + 1;
    bad[4].expires_at = clock.now();
    bad[5].pools = [&good.pools[..], &good.pools[..], &good.pools[..]].concat();
    for announced in bad {
        let refused = here.fetch_set(&kme("site-a"), &announced).await;
        assert!(matches!(refused, Err(PoolSetError::Refused(_))), "{refused:?}");
    }
    for (server, pool) in servers.iter().zip(["pool-1", "pool-2", "pool-3"]) {
        let pool = good.pools.iter().find(|held| held.server.as_str() == pool).unwrap();
        let reads = server.vault.reads(pool.id, &kme("site-a")).unwrap();
        assert_eq!((reads.readers[0].started, reads.readers[1].started), (1, 0));
    }
}

#[tokio::test]
async fn concurrent_requests_share_one_new_set() {
    let site = Site::new().await;
    let group = group(&["site-b"]);
    let sets = futures_util::future::join_all((0..16).map(|_| site.sets.acquire(&group, 1_000))).await;
    let ids: BTreeSet<PoolSetId> = sets.iter().map(|set| set.as_ref().unwrap().id()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!((site.pools(), site.announced()), (3, 1));
    let set = sets[0].as_ref().unwrap();
    assert_eq!(set.left_bits(), set.total_bits() - 16_000);
    assert_eq!(set.recipients(), &group);
}

#[tokio::test]
async fn an_exhausted_budget_makes_a_larger_set_and_releases_the_old_one() {
    let site = Site::new().await;
    let group = group(&["site-b"]);
    let first = site.sets.acquire(&group, 1_000).await.unwrap();
    let (first_id, left) = (first.id(), first.left_bits());
    drop(first);
    let second = site.sets.acquire(&group, left + 1).await.unwrap();
    assert_ne!(second.id(), first_id);
    assert_eq!(second.words(), 4 * WORDS, "room for four such requests");
    eventually("the old pools are erased at the servers", || site.pools() == 3).await;
}

#[tokio::test]
async fn a_set_that_runs_low_is_renewed_ahead_of_need() {
    let site = Site::new().await;
    let group = group(&["site-b"]);
    let first = site.sets.acquire(&group, 1_000).await.unwrap();
    let most = first.left_bits() - first.left_bits() / 5;
    assert_eq!(site.sets.acquire(&group, most).await.unwrap().id(), first.id());
    eventually("a second set is announced", || site.announced() == 2).await;
    assert_eq!(site.sets.acquire(&group, 1_000).await.unwrap().id(), first.id(), "the rest is used up first");
    let second = site.sets.acquire(&group, first.left_bits() + 1).await.unwrap();
    assert_ne!(second.id(), first.id());
    assert_eq!(second.words(), 2 * WORDS, "spent in no time, so the next is twice as large");
}

#[tokio::test]
async fn a_set_near_its_expiry_is_not_used_any_more() {
    let site = Site::new().await;
    let group = group(&["site-b"]);
    let first = site.sets.acquire(&group, 1_000).await.unwrap();
    site.clock.advance(TTL.checked_sub(Duration::from_secs(30)).unwrap());
    let second = site.sets.acquire(&group, 1_000).await.unwrap();
    assert_ne!(second.id(), first.id());
    assert!(site.clock.now() < first.expires_at(), "the first one still lives, but not for long");
}

#[tokio::test]
async fn a_set_that_cannot_be_announced_is_never_used() {
    let site = Site::with(source_settings(), Announcer { refuses: true, ..Announcer::default() }).await;
    let refused = site.sets.acquire(&group(&["site-b"]), 1_000).await;
    assert!(matches!(refused, Err(SourceSetError::NotAnnounced(_))), "{refused:?}");
    assert_eq!(site.sets.count(), 0);
    eventually("its pools are released", || site.pools() == 0).await;
    eventually("its memory is free", || site.sets.used_bytes() == 0).await;
    site.sets.acquire(&group(&[]), 1_000).await.unwrap();
}

#[tokio::test]
async fn the_group_unused_for_longest_makes_room() {
    let site =
        Site::with(SourceSetsSettings { groups_max: 2, ..source_settings() }, Announcer::default()).await;
    let mut used = Vec::new();
    for name in ["site-b", "site-c", "site-b", "site-d"] {
        used.push(site.sets.acquire(&group(&[name]), 1_000).await.unwrap().id());
    }
    eventually("its pools are released", || site.pools() == 6).await;
    // site-b kept its set; site-c needs a new one.
    assert_eq!(site.sets.acquire(&group(&["site-b"]), 1_000).await.unwrap().id(), used[0]);
    assert_ne!(site.sets.acquire(&group(&["site-c"]), 1_000).await.unwrap().id(), used[1]);
}

#[tokio::test]
async fn demands_beyond_size_or_memory_are_refused() {
    let tight = SourceSetsSettings { memory_max_bytes: 3 * POOL_BYTES, ..source_settings() };
    let site = Site::with(tight, Announcer::default()).await;
    let local = group(&[]);
    let most = 16 * 4 * WORDS as u64;
    assert!(matches!(site.sets.acquire(&local, most + 1).await, Err(SourceSetError::TooLarge { .. })));
    assert!(matches!(site.sets.acquire(&local, most).await, Err(SourceSetError::Busy(_))));
    site.sets.acquire(&local, 1_000).await.unwrap();
    assert!(matches!(site.sets.acquire(&group(&["site-b"]), 1_000).await, Err(SourceSetError::Busy(_))));
}

#[tokio::test]
async fn a_closed_site_erases_its_sets_and_makes_no_more() {
    let site = Site::new().await;
    site.sets.acquire(&group(&["site-b"]), 1_000).await.unwrap();
    site.sets.close().await;
    assert_eq!(site.pools(), 0);
    assert!(matches!(site.sets.acquire(&group(&["site-b"]), 1_000).await, Err(SourceSetError::Busy(_))));
}

#[tokio::test]
async fn a_discarded_set_is_replaced() {
    let site = Site::new().await;
    let group = group(&["site-b"]);
    let id = site.sets.acquire(&group, 1_000).await.unwrap().id();
    site.sets.discard(&group, id);
    assert_ne!(site.sets.acquire(&group, 1_000).await.unwrap().id(), id);
}

struct Pair {
    servers: Vec<TestServer>,
    clock: Arc<ManualClock>,
    source: Arc<PoolServers>,
    here: Arc<RecipientSets>,
}

impl Pair {
    async fn with(settings: RecipientSetsSettings) -> Self {
        let clock = manual_clock();
        let servers = three_servers(&clock).await;
        let source = servers_as(&servers, A, &clock);
        let here = RecipientSets::new(servers_as(&servers, B, &clock), settings, clock.clone());
        Self { servers, clock, source, here }
    }

    async fn announced(&self) -> AnnouncedSet {
        self.source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap().announcement()
    }
}

#[tokio::test]
async fn a_recipient_downloads_a_set_once_for_all_who_wait() {
    let pair = Pair::with(recipient_settings()).await;
    let announced = pair.announced().await;
    let source = kme("site-a");
    let done = AtomicUsize::new(0);
    let fetches = (0..8).map(|_| async {
        let set = pair.here.get_or_fetch(&source, &announced).await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
        set
    });
    let sets = futures_util::future::join_all(fetches).await;
    assert_eq!(done.load(Ordering::Relaxed), 8);
    assert!(sets.iter().all(|set| Arc::ptr_eq(set, &sets[0])));
    for server in &pair.servers {
        let pool = announced.pools.iter().find(|pool| pool.server.as_str() == server.name).unwrap();
        assert_eq!(server.vault.reads(pool.id, &source).unwrap().readers[1].started, 1);
    }
    let mut other = announced.clone();
    other.pools.reverse();
    let conflict = pair.here.get_or_fetch(&source, &other).await;
    assert!(matches!(conflict, Err(RecipientSetError::Conflict)), "{conflict:?}");
}

#[tokio::test]
async fn a_recipient_accounts_for_the_budget_and_the_expiry_itself() {
    let pair = Pair::with(recipient_settings()).await;
    let announced = pair.announced().await;
    let source = kme("site-a");
    let set = pair.here.get_or_fetch(&source, &announced).await.unwrap();
    set.spend(set.total_bits() - 100).unwrap();
    assert!(set.spend(101).is_err());
    assert_eq!(set.left_bits(), 100, "a refused spend takes nothing");
    let again = pair.here.get_or_fetch(&source, &announced).await.unwrap();
    assert_eq!(again.left_bits(), 100, "fetching again does not refill");
    drop((set, again));
    pair.clock.advance(TTL);
    let expired = pair.here.get_or_fetch(&source, &announced).await;
    assert!(matches!(expired, Err(RecipientSetError::Refused(_))), "{expired:?}");
    pair.here.sweep();
    assert_eq!((pair.here.count(), pair.here.used_bytes()), (0, 0));
}

#[tokio::test]
async fn a_source_evicts_only_its_own_oldest_set() {
    let pair = Pair::with(recipient_settings()).await;
    let (a, c) = (kme("site-a"), kme("site-c"));
    let of_c = pair.announced().await;
    pair.here.get_or_fetch(&c, &of_c).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..3 {
        pair.clock.advance(Duration::from_secs(1));
        all.push(pair.announced().await);
        pair.here.get_or_fetch(&a, all.last().unwrap()).await.unwrap();
    }
    assert_eq!(pair.here.count(), 3);
    let reads_of = |announced: &AnnouncedSet| {
        let server = pair.servers.iter().find(|server| server.name == announced.pools[0].server.as_str());
        server.unwrap().vault.reads(announced.pools[0].id, &a).unwrap().readers[1].started
    };
    pair.here.get_or_fetch(&c, &of_c).await.unwrap();
    assert_eq!(reads_of(&of_c), 1, "the other source's set stayed");
    pair.here.get_or_fetch(&a, &all[2]).await.unwrap();
    assert_eq!(reads_of(&all[2]), 1, "the newest stayed");
    pair.here.get_or_fetch(&a, &all[0]).await.unwrap();
    assert_eq!(reads_of(&all[0]), 2, "the oldest had to be fetched again");
}

#[tokio::test]
async fn memory_of_other_sources_is_never_taken() {
    let one_set = RecipientSetsSettings { memory_max_bytes: 3 * POOL_BYTES, ..recipient_settings() };
    let pair = Pair::with(one_set).await;
    let first = pair.announced().await;
    pair.here.get_or_fetch(&kme("site-a"), &first).await.unwrap();
    let refused = pair.here.get_or_fetch(&kme("site-c"), &pair.announced().await).await;
    assert!(matches!(refused, Err(RecipientSetError::Busy)), "{refused:?}");
    pair.here.get_or_fetch(&kme("site-a"), &pair.announced().await).await.unwrap();
    assert_eq!(pair.here.count(), 1, "its own old set made room");
}

#[tokio::test]
async fn a_source_that_fills_the_memory_makes_room_for_others() {
    let two_sets = RecipientSetsSettings { memory_max_bytes: 6 * POOL_BYTES, ..recipient_settings() };
    let pair = Pair::with(two_sets).await;
    for _ in 0..2 {
        pair.here.get_or_fetch(&kme("site-a"), &pair.announced().await).await.unwrap();
    }
    let other = pair.announced().await;
    pair.here.get_or_fetch(&kme("site-c"), &other).await.unwrap();
    // It has no more than its share now, so it makes room of its own.
    pair.here.get_or_fetch(&kme("site-a"), &pair.announced().await).await.unwrap();
    assert_eq!(pair.here.count(), 2);
    let downloads = pair.here.used_bytes();
    pair.here.get_or_fetch(&kme("site-c"), &other).await.unwrap();
    assert_eq!(pair.here.used_bytes(), downloads, "the set of site-c is still here");
}

#[tokio::test]
async fn a_failed_download_is_forgotten_and_frees_its_memory() {
    let pair = Pair::with(recipient_settings()).await;
    let mut announced = pair.announced().await;
    let real = announced.pools[0].id;
    announced.pools[0].id = kme::PoolId::draw(&OsRandom).unwrap();
    let failed = pair.here.get_or_fetch(&kme("site-a"), &announced).await;
    assert!(matches!(failed, Err(RecipientSetError::Fetch(_))), "{failed:?}");
    eventually("the memory is free", || pair.here.used_bytes() == 0).await;
    assert_eq!(pair.here.count(), 0);
    announced.pools[0].id = real;
    pair.here.get_or_fetch(&kme("site-a"), &announced).await.unwrap();
}
