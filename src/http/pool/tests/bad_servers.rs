//! Pool servers that are missing, lie or break off, and readers that should not exist.

use std::sync::Mutex;
use std::time::Duration;

use kme::{KmeId, ManualClock, PoolServerId};

use super::sets::{
    A, B, TTL, eventually, group, kme, recipient_settings, servers_as, source_settings, three_servers,
};
use crate::http::pool::testing::{
    Caller, Conduct, TestServer, WORDS, client_of_nobody, limits, manual_clock,
};
use crate::pool::*;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kme::OsRandom;

fn server(name: &str) -> PoolServerId {
    name.parse().unwrap()
}

/// Sets of three pools, never fewer than `pools_min`.
fn strict(
    clients: Vec<PoolClient>,
    pools_min: usize,
    patience: Duration,
    clock: &Arc<ManualClock>,
) -> Arc<PoolServers> {
    let settings = PoolServersSettings {
        pools_per_set: 3,
        pools_min,
        set_timeout: patience,
        reads_expected: BTreeMap::new(),
    };
    PoolServers::new(kme("site-a"), clients, settings, clock.clone(), Arc::new(OsRandom))
}

const PATIENCE: Duration = Duration::from_secs(20);

/// `pool-1` to `pool-4`; the last one behaves as told.
async fn four_servers(clock: &Arc<ManualClock>, conduct: Conduct) -> Vec<TestServer> {
    let mut servers = three_servers(clock).await;
    servers.push(TestServer::conducted("pool-4", limits(), clock.clone(), conduct).await);
    servers
}

fn clients(servers: &[TestServer]) -> Vec<PoolClient> {
    servers.iter().map(|server| server.client(A)).collect()
}

#[tokio::test]
async fn no_set_is_made_with_fewer_pools_than_pools_min_and_the_missing_server_is_named() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let mut clients = clients(&servers[..2]);
    clients.push(client_of_nobody("pool-3", A).await);
    let here = strict(clients, 3, PATIENCE, &clock);
    assert_eq!(here.usable_for(&group(&["site-b"])), 3, "nothing is known yet");
    let missing = match here.make_set(&group(&["site-b"]), WORDS, TTL).await {
        Err(PoolSetError::TooFewServers { answered: 2, needed: 3, missing }) => missing,
        other => panic!("{other:?}"),
    };
    let names: Vec<&PoolServerId> = missing.keys().collect();
    assert_eq!(names, [&server("pool-3")]);
    assert!(missing[&server("pool-3")].contains("cannot be reached"), "{missing:?}");
    assert_eq!(here.usable_for(&group(&["site-b"])), 2);
    let standings: BTreeMap<_, _> = here.standings().into_iter().collect();
    assert!(standings[&server("pool-3")].trouble.as_ref().unwrap().contains("pool-3"), "{standings:?}");
    assert_eq!(standings[&server("pool-1")], ServerStanding::default());
    eventually("the pools that were made are released", || {
        servers.iter().all(|server| server.vault.pool_count() == 0)
    })
    .await;
}

#[tokio::test]
async fn while_servers_are_missing_callers_learn_it_at_once_and_a_server_that_is_back_is_noticed() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let mut clients = clients(&servers[..2]);
    clients.push(client_of_nobody("pool-3", A).await);
    let here = strict(clients, 3, PATIENCE, &clock);
    let sets = SourceSets::new(here, Arc::new(Recorder::default()), source_settings(), clock.clone());
    for _ in 0..20 {
        let refused = sets.acquire(&group(&["site-b"]), 1_000).await;
        assert!(matches!(refused, Err(SourceSetError::NotMade(_))), "{refused:?}");
    }
    let made: u64 = servers.iter().map(|server| server.vault.made_count()).sum();
    assert!(made <= 4, "twenty callers share one attempt and its failure: {made} pools were made");
}

#[tokio::test]
async fn a_silent_server_is_in_use_again_when_it_answers() {
    let clock = manual_clock();
    let mut servers = three_servers(&clock).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    let address = servers[2].address();
    drop(servers.pop());
    eventually("the port is closed", || std::net::TcpStream::connect(address).is_err()).await;
    let refused = here.make_set(&group(&[]), WORDS, TTL).await;
    assert!(matches!(refused, Err(PoolSetError::TooFewServers { .. })), "{refused:?}");
    assert_eq!(here.usable_for(&group(&[])), 2);
    let _back = TestServer::at("pool-3", address, clock.clone()).await;
    let probing = async {
        while here.usable_for(&group(&[])) < 3 {
            here.probe().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, probing).await.unwrap();
    here.make_set(&group(&[]), WORDS, TTL).await.unwrap();
}

#[tokio::test]
async fn a_recipient_refuses_sets_with_fewer_pools_than_it_demands_itself() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let source = strict(clients(&servers[..2]), 2, PATIENCE, &clock);
    let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    let settings = RecipientSetsSettings { pools_min: 3, ..recipient_settings() };
    let here = RecipientSets::new(servers_as(&servers, B, &clock), settings, clock.clone());
    let refused = here.get_or_fetch(&kme("site-a"), &set.announcement()).await;
    let (pools, pools_min) = match refused {
        Err(RecipientSetError::TooFewPools { pools, pools_min }) => (pools, pools_min),
        other => panic!("{other:?}"),
    };
    assert_eq!((pools, pools_min), (2, 3));
    assert_eq!(here.count(), 0);
    // The source remembers who demands what, until that site accepts a set.
    source.heed(&kme("site-b"), &SetTrouble::TooFewPools { pools_min });
    assert_eq!(source.demands(), BTreeMap::from([(kme("site-b"), 3)]));
}

/// The digests that differ.
fn differing(here: &PoolSet, there: &PoolSet) -> Vec<PoolServerId> {
    let salt = [7; 32];
    let pairs = here.digests(&salt).into_iter().zip(there.digests(&salt));
    pairs.filter(|(own, other)| own != other).map(|(own, _)| own.0.server).collect()
}

#[tokio::test]
async fn a_server_that_lies_to_one_reader_is_found_by_the_digests_of_both_sites() {
    let clock = manual_clock();
    let mut servers = three_servers(&clock).await;
    servers[2] = TestServer::conducted("pool-3", limits(), clock.clone(), Conduct::LiesTo("site-b")).await;
    let source = strict(clients(&servers), 3, PATIENCE, &clock);
    let here = servers_as(&servers, B, &clock);
    let made = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    let fetched = here.fetch_set(&kme("site-a"), &made.announcement()).await.unwrap();
    assert_eq!(differing(&made, &fetched), [server("pool-3")]);
    assert_eq!(differing(&made, &made), []);
    let (one, other) = (made.digests(&[1; 32]), made.digests(&[2; 32]));
    assert!(one.iter().zip(&other).all(|(one, other)| one.1 != other.1), "the salt is part of it");
}

#[tokio::test]
async fn a_server_under_quarantine_is_used_for_no_set_of_that_peer_and_for_those_of_others() {
    let clock = manual_clock();
    let servers = four_servers(&clock, Conduct::Honest).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    here.quarantine(&server("pool-4"), &kme("site-b")).unwrap();
    assert!(here.quarantine(&server("pool-9"), &kme("site-b")).is_none());
    for _ in 0..8 {
        let set = here.make_set(&group(&["site-b", "site-c"]), WORDS, TTL).await.unwrap();
        assert!(!set.uses(&server("pool-4")));
    }
    let mut others = 0;
    while !here.make_set(&group(&["site-c"]), WORDS, TTL).await.unwrap().uses(&server("pool-4")) {
        others += 1;
        assert!(others < 100, "one set of two has it");
    }
    // With one more, too few are left: no pool is made, and the error names both.
    here.quarantine(&server("pool-1"), &kme("site-b")).unwrap();
    let before: u64 = servers.iter().map(|server| server.vault.made_count()).sum();
    match here.make_set(&group(&["site-b"]), WORDS, TTL).await {
        Err(PoolSetError::TooFewServers { answered: 0, needed: 3, missing }) => {
            let names: Vec<&PoolServerId> = missing.keys().collect();
            assert_eq!(names, [&server("pool-1"), &server("pool-4")]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(servers.iter().map(|server| server.vault.made_count()).sum::<u64>(), before);
    here.make_set(&group(&["site-c"]), WORDS, TTL).await.unwrap();
}

#[tokio::test]
async fn a_recipient_refuses_sets_of_a_server_under_quarantine_and_names_it() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let source = strict(clients(&servers), 3, PATIENCE, &clock);
    let here = servers_as(&servers, B, &clock);
    let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    here.quarantine(&server("pool-2"), &kme("site-a")).unwrap();
    let refused = here.fetch_set(&kme("site-a"), &set.announcement()).await.unwrap_err();
    assert_eq!(refused.blamed(), Some(&server("pool-2")), "{refused}");
    let for_another = here.fetch_set(&kme("site-c"), &set.announcement()).await;
    assert!(for_another.is_ok(), "{for_another:?}");
}

#[tokio::test]
async fn a_discarded_set_is_refused_from_then_on_and_can_be_compared_once_within_a_minute() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let source = servers_as(&servers, A, &clock);
    let here = RecipientSets::new(servers_as(&servers, B, &clock), recipient_settings(), clock.clone());
    let a = kme("site-a");
    let mut announced = Vec::new();
    for _ in 0..2 {
        let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap().announcement();
        let held = here.get_or_fetch(&a, &set).await.unwrap();
        assert!(here.take_aside(&a, set.id).is_none(), "it is in use");
        here.discard(&a, &held);
        announced.push(set);
    }
    assert_eq!(here.count(), 0);
    let refused = here.get_or_fetch(&a, &announced[0]).await;
    assert!(matches!(refused, Err(RecipientSetError::Discarded)), "{refused:?}");
    assert!(here.take_aside(&kme("site-c"), announced[0].id).is_none(), "not for others");
    assert_eq!(here.take_aside(&a, announced[0].id).unwrap().id(), announced[0].id);
    assert!(here.take_aside(&a, announced[0].id).is_none(), "once");
    clock.advance(Duration::from_mins(1));
    assert!(here.take_aside(&a, announced[1].id).is_none(), "too late");
    here.sweep();
    assert_eq!(here.used_bytes(), 0, "its pools are erased");
    let refused = here.get_or_fetch(&a, &announced[1]).await;
    assert!(matches!(refused, Err(RecipientSetError::Discarded)), "{refused:?}");
}

#[tokio::test]
async fn a_source_whose_sets_are_all_discarded_holds_only_a_few_aside() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let source = servers_as(&servers, A, &clock);
    let here = RecipientSets::new(servers_as(&servers, B, &clock), recipient_settings(), clock.clone());
    let a = kme("site-a");
    for _ in 0..12 {
        let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
        let held = here.get_or_fetch(&a, &set.announcement()).await.unwrap();
        here.discard(&a, &held);
        source.release(&set);
        clock.advance(Duration::from_millis(1));
    }
    let set_bytes = 3 * 8 * WORDS as u64;
    assert_eq!(here.used_bytes(), 4 * set_bytes);
}

#[tokio::test]
async fn a_server_that_never_ends_its_download_is_named_and_another_takes_its_place() {
    let clock = manual_clock();
    let servers = four_servers(&clock, Conduct::NeverEndsFor("site-a")).await;
    let mut servers = servers;
    // Without a spare, every set would need the bad one.
    servers.swap(0, 3);
    let here = strict(clients(&servers), 3, Duration::from_secs(4), &clock);
    let mut was_asked = false;
    for _ in 0..20 {
        let set = here.make_set(&group(&[]), WORDS, TTL).await.unwrap();
        assert!(!set.uses(&server("pool-4")));
        was_asked |= servers[0].vault.made_count() > 0;
        if was_asked {
            break;
        }
    }
    assert!(was_asked, "three of four are asked each time");
    eventually("it is named", || {
        let standings = here.standings();
        standings.iter().any(|(name, is)| {
            *name == server("pool-4") && is.trouble.as_ref().is_some_and(|why| why.contains("in time"))
        })
    })
    .await;
}

#[tokio::test]
async fn a_recipient_names_the_server_whose_download_does_not_end_before_the_source_gives_up() {
    let clock = manual_clock();
    let mut servers = three_servers(&clock).await;
    servers[0] =
        TestServer::conducted("pool-1", limits(), clock.clone(), Conduct::NeverEndsFor("site-b")).await;
    let source = strict(clients(&servers), 3, PATIENCE, &clock);
    let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    let settings = PoolServersSettings {
        pools_per_set: 3,
        pools_min: 3,
        set_timeout: Duration::from_secs(2),
        reads_expected: BTreeMap::new(),
    };
    let clients = servers.iter().map(|server| server.client(B)).collect();
    let here = PoolServers::new(kme("site-b"), clients, settings, clock.clone(), Arc::new(OsRandom));
    let fetch = tokio::time::timeout(Duration::from_secs(2), async {
        here.fetch_set(&kme("site-a"), &set.announcement()).await.unwrap_err()
    });
    let failed = fetch.await.expect("it ends within the time that the source waits");
    assert_eq!(failed.blamed(), Some(&server("pool-1")), "{failed}");
    assert!(matches!(failed, PoolSetError::Fetch(PoolClientError::Late(_))), "{failed:?}");
}

/// An announcer that lets every set be downloaded by `site-b`, or refuses the first for a reason.
#[derive(Default)]
struct Recorder {
    refuses: Mutex<Option<SetTrouble>>,
    refuses_all: bool,
}

impl SetAnnouncer for Recorder {
    fn announce(&self, _: Arc<PoolSet>) -> Announcing<'_> {
        let trouble = self.refuses.lock().unwrap().take().map(|trouble| (kme("site-b"), trouble));
        let is_taken = !self.refuses_all;
        Box::pin(async move {
            match trouble {
                None if is_taken => Ok(()),
                trouble => Err(AnnounceError { trouble, cause: "refused".into() }),
            }
        })
    }
}

#[tokio::test]
async fn a_server_that_a_recipient_cannot_use_is_left_out_of_the_next_set() {
    let clock = manual_clock();
    let servers = four_servers(&clock, Conduct::Honest).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    let trouble = SetTrouble::PoolServers { pool_servers: vec![server("pool-4"), server("pool-9")] };
    let announcer = Arc::new(Recorder { refuses: Mutex::new(Some(trouble)), refuses_all: false });
    let sets = SourceSets::new(Arc::clone(&here), announcer, source_settings(), clock.clone());
    let set = sets.acquire(&group(&["site-b"]), 1_000).await.unwrap();
    assert!(!set.uses(&server("pool-4")));
}

#[tokio::test]
async fn sets_that_are_given_up_again_and_again_are_made_ever_more_slowly() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    let sets = SourceSets::new(here, Arc::new(Recorder::default()), source_settings(), clock.clone());
    let group = group(&["site-b"]);
    let mut made = 0;
    let refused = loop {
        match sets.acquire(&group, 1_000).await {
            Ok(set) => {
                made += 1;
                // Nor does it help to confirm some batches.
                if made == 2 {
                    set.note_proof();
                }
                sets.discard(&group, set.id());
            }
            Err(refused) => break refused,
        }
        assert!(made < 10);
    };
    assert!(matches!(refused, SourceSetError::Busy(_)), "{refused}");
    assert_eq!(made, 3);
}

#[tokio::test]
async fn a_recipient_that_takes_no_set_does_not_use_up_what_the_pool_servers_grant() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    let announcer = Arc::new(Recorder { refuses_all: true, ..Recorder::default() });
    let sets = SourceSets::new(here, announcer, source_settings(), clock.clone());
    for _ in 0..50 {
        let refused = sets.acquire(&group(&["site-b"]), 1_000).await.unwrap_err();
        assert!(matches!(refused, SourceSetError::NotAnnounced(_)), "{refused}");
    }
    let made = servers[0].vault.made_count();
    assert!((2..10).contains(&made), "{made} sets were made for it");
}

struct Watched {
    servers: Vec<TestServer>,
    here: Arc<PoolServers>,
    sets: Arc<SourceSets>,
    watching: tokio::task::JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Watched {
    async fn start() -> Self {
        let clock = manual_clock();
        let servers = three_servers(&clock).await;
        let here = strict(clients(&servers), 3, PATIENCE, &clock);
        let announcer = Arc::new(Recorder::default());
        let sets = SourceSets::new(Arc::clone(&here), announcer, source_settings(), clock);
        let watching = tokio::spawn(Arc::clone(&sets).watch_readers());
        Self { servers, here, sets, watching }
    }

    async fn read(&self, set: &PoolSet, reader: &'static str) {
        let pool = &set.announcement().pools[0];
        let server = self.servers.iter().find(|server| server.name == pool.server.as_str()).unwrap();
        let soon = tokio::time::Instant::now() + PATIENCE;
        server.client(Caller::Kme(reader)).download(pool.id, WORDS, soon).await.unwrap();
    }
}

#[tokio::test]
async fn an_extra_reader_retires_a_set_that_is_in_use() {
    let site = Watched::start().await;
    let peers: BTreeSet<KmeId> = group(&["site-b"]);
    let set = site.sets.acquire(&peers, 1_000).await.unwrap();
    site.read(&set, "site-b").await;
    site.sets.acquire(&peers, 1_000).await.unwrap();
    assert_eq!(site.here.recent_extra_read(), None, "site-b may read it once");
    site.read(&set, "site-b").await;
    // Whether it was read again is looked at while keys are drawn.
    let next = async {
        loop {
            let now = site.sets.acquire(&peers, 1).await.unwrap();
            if now.id() != set.id() {
                return now;
            }
            drop(now);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap();
    let alarm = site.here.recent_extra_read().unwrap();
    assert!(alarm.contains("KME site-b read pool"), "{alarm}");
    let count: u64 = site.here.extra_reads().iter().map(|(_, count)| count).sum();
    assert_eq!(count, 1);
    let id = set.id();
    drop(set);
    eventually("its pools are erased", || {
        site.servers.iter().map(|server| server.vault.pool_count()).sum::<usize>() == 3
    })
    .await;
    let count: u64 = site.here.extra_reads().iter().map(|(_, count)| count).sum();
    assert_eq!(count, 1, "{id}: one alarm for one read, not another when it is released");
}

#[tokio::test]
async fn a_server_that_invents_reads_is_left_out_of_the_next_sets_of_that_peer() {
    let clock = manual_clock();
    let servers = four_servers(&clock, Conduct::InventsReadsOf("site-b")).await;
    let here = strict(clients(&servers), 3, PATIENCE, &clock);
    let announcer = Arc::new(Recorder::default());
    let sets = SourceSets::new(Arc::clone(&here), announcer, source_settings(), clock.clone());
    let (b, c) = (group(&["site-b"]), group(&["site-c"]));
    let lied = async {
        loop {
            let set = sets.acquire(&b, 1_000).await.unwrap();
            if set.uses(&server("pool-4")) {
                return;
            }
            sets.avoid(&server("pool-1"), &kme("site-b"));
            sets.avoid(&server("pool-2"), &kme("site-b"));
        }
    };
    tokio::time::timeout(PATIENCE, lied).await.unwrap();
    eventually("it is noticed", || here.usable_for(&b) == 3).await;
    for _ in 0..8 {
        let set = here.make_set(&b, WORDS, TTL).await.unwrap();
        here.note_accepted(&set);
        assert!(!set.uses(&server("pool-4")));
        here.release(&set);
    }
    assert_eq!(here.usable_for(&c), 4, "what is said of one peer counts for its sets only");
    let standings = here.standings();
    let (_, standing) = standings.iter().find(|(name, _)| *name == server("pool-4")).unwrap();
    assert_eq!(standing.doubted_for, [kme("site-b")]);
}

#[tokio::test]
async fn a_peer_that_announces_a_wrong_length_drives_no_set_of_others_to_other_servers() {
    let clock = manual_clock();
    let servers = three_servers(&clock).await;
    let source = servers_as(&servers, A, &clock);
    let here = servers_as(&servers, B, &clock);
    let set = source.make_set(&group(&["site-b"]), WORDS, TTL).await.unwrap();
    let mut announced = set.announcement();
    announced.words *= 2;
    let failed = here.fetch_set(&kme("site-a"), &announced).await.unwrap_err();
    assert!(matches!(failed, PoolSetError::Fetch(PoolClientError::WrongLength { .. })), "{failed:?}");
    assert_eq!(here.usable_for(&group(&["site-c"])), 3);
    assert!(here.usable_for(&group(&["site-a"])) < 3);
}
