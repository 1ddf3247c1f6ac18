//! Two daemons for one KME on one Postgres database: each serves the keys that the other made, stored or
//! received, and no key is handed out twice.

use std::collections::HashSet;
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use testkit::needs;
use testkit::postgres::TestPostgres;
use testkit::{CurlAnswer, Network, eventually};

/// Sites A and B with two daemons each.
struct Pairs {
    network: Network,
}

/// Places of the daemons.
const A: [usize; 2] = [0, 2];
const B: [usize; 2] = [1, 3];
/// A query for another size than the default: such keys are made and pushed on request.
const ON_DEMAND: &str = "?size=512";

/// Gives a site a database of its own that any number of daemons may share.
fn on_postgres(network: &Network, site: usize) -> String {
    let url = TestPostgres::shared().new_database();
    let file = format!("sqlite://{}.db", network.site(site).id);
    network.configure(site, &file, &url);
    url
}

impl Pairs {
    /// Files only; `keys` are lines for `[keys]` of every daemon.
    fn generate(keys: &str) -> Self {
        let mut network = Network::generate(2);
        for site in [0, 1] {
            network.configure(site, "[store]", &format!("[keys]\n{keys}\n\n[store]"));
            on_postgres(&network, site);
        }
        assert_eq!([network.add_replica(0), network.add_replica(1)], [A[1], B[1]]);
        network.list_replicas();
        network.start_pools(3);
        Self { network }
    }

    /// Starts all daemons.
    fn start(keys: &str) -> Self {
        let mut pairs = Self::generate(keys);
        pairs.network.start_sites();
        pairs
    }

    fn url(&self, daemon: usize, path_id: &str, call: &str) -> String {
        format!("{}/api/v1/keys/{path_id}/{call}", self.network.site(daemon).sae_url)
    }

    /// `enc_keys` of alice for bob at one daemon of site A.
    fn enc(&self, daemon: usize, query: &str) -> CurlAnswer {
        let url = self.url(daemon, "bob", "enc_keys");
        self.network.curl("alice").get(&format!("{url}{query}"))
    }

    /// `dec_keys` of bob at one daemon of site B.
    fn dec(&self, daemon: usize, ids: &[&str]) -> CurlAnswer {
        let ids: Vec<Value> = ids.iter().map(|id| json!({ "key_ID": id })).collect();
        let url = self.url(daemon, "alice", "dec_keys");
        self.network.curl("bob").post(&url, &json!({ "key_IDs": ids }).to_string())
    }

    /// How many keys are ready, according to one daemon of site A.
    fn ready(&self, daemon: usize) -> u64 {
        let answer = self.network.curl("alice").get(&self.url(daemon, "bob", "status"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["stored_key_count"].as_u64().unwrap()
    }

    fn kill(&mut self, daemons: [usize; 2]) {
        for daemon in daemons {
            self.network.kill_site(daemon);
        }
    }

    /// All keys that a daemon of site A hands out until it has none and cannot make any.
    fn drain(&self, daemon: usize) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        loop {
            let answer = self.enc(daemon, "?number=8");
            if answer.status != 200 {
                assert_eq!(answer.status, 503, "{answer:?}");
                return keys;
            }
            keys.extend(answer.keys());
        }
    }
}

#[test]
fn a_key_from_any_replica_is_retrieved_through_any_replica_of_the_peer_once() {
    needs!(Postgres, Curl);
    let pairs = Pairs::start("min_stored_per_pair = 0");
    for made_at in A {
        for taken_at in B {
            for query in ["", ON_DEMAND] {
                let key = pairs.enc(made_at, query).key();
                assert_eq!(pairs.dec(taken_at, &[&key.0]).key(), key);
                for again_at in B {
                    let again = pairs.dec(again_at, &[&key.0]);
                    assert_eq!(again.status, 400, "{again:?}");
                }
            }
        }
    }
}

#[test]
fn of_two_retrievals_at_the_same_moment_through_two_replicas_one_gets_the_key() {
    needs!(Postgres, Curl);
    let pairs = Pairs::start("min_stored_per_pair = 0");
    for key in pairs.enc(A[0], "?number=8").keys() {
        let answers: Vec<CurlAnswer> = thread::scope(|scope| {
            let (pairs, id) = (&pairs, key.0.as_str());
            let asked = B.map(|daemon| scope.spawn(move || pairs.dec(daemon, &[id])));
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{answers:?}");
        let good = answers.iter().find(|answer| answer.status == 200).unwrap();
        assert_eq!(good.key(), key);
    }
}

#[test]
fn replicas_hand_out_the_same_ready_keys_and_none_twice() {
    needs!(Postgres, Curl);
    let mut pairs = Pairs::start("min_stored_per_pair = 192");
    eventually("the reserve is full", || pairs.ready(A[0]) >= 192);
    let made_by_the_other = pairs.ready(A[1]);
    assert!(made_by_the_other >= 192, "the second daemon counts what the first made: {made_by_the_other}");
    // From here on no key can be made.
    pairs.kill(B);
    let both: Vec<Vec<(String, String)>> = thread::scope(|scope| {
        let drained = A.map(|daemon| {
            scope.spawn({
                let pairs = &pairs;
                move || pairs.drain(daemon)
            })
        });
        drained.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [one, two] = both.as_slice() else { panic!("two") };
    assert!(!one.is_empty() && !two.is_empty(), "both lease: {} and {}", one.len(), two.len());
    let distinct: HashSet<&String> = one.iter().chain(two).map(|(id, _)| id).collect();
    assert_eq!(distinct.len(), one.len() + two.len(), "a key was handed out twice");
    assert!(distinct.len() > 192 - 2 * 8, "{} of what was ready were handed out", distinct.len());
    pairs.network.start_site(B[1]);
    let all: Vec<_> = one.iter().chain(two).cloned().collect();
    for some in all.chunks(64) {
        let ids: Vec<&str> = some.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(pairs.dec(B[1], &ids).keys(), some);
    }
}

#[test]
fn what_a_stopped_replica_had_leased_another_hands_out() {
    needs!(Postgres, Curl);
    let mut pairs = Pairs::start("min_stored_per_pair = 100");
    eventually("the reserve is full", || pairs.ready(A[0]) >= 100);
    let mut seen: HashSet<_> = pairs.enc(A[0], "?number=7").keys().into_iter().collect();
    pairs.kill(B);
    // By then the refills that began before the kills have ended.
    eventually("the peer is known to be away", || pairs.network.part(A[0], "peer site-b") == "degraded");
    let before = pairs.ready(A[0]);
    assert!(before >= 93, "{before}");
    assert!(pairs.network.sites[A[0]].take().unwrap().terminate().success());
    eventually("the other counts them", || pairs.ready(A[1]) == before);
    for key in pairs.enc(A[1], &format!("?number={before}")).keys() {
        assert!(seen.insert(key), "a key was handed out twice");
    }
}

#[test]
fn a_dead_replica_of_the_peer_fails_no_request_and_is_called_again_when_it_is_back() {
    needs!(Postgres, Curl);
    let mut pairs = Pairs::start("min_stored_per_pair = 0");
    pairs.enc(A[0], ON_DEMAND).key();
    pairs.network.kill_site(B[0]);
    for _ in 0..12 {
        let key = pairs.enc(A[0], ON_DEMAND).key();
        assert_eq!(pairs.dec(B[1], &[&key.0]).key(), key);
    }
    eventually("readyz notices", || pairs.network.part(A[0], "peer site-b") == "degraded");
    pairs.network.start_site(B[0]);
    eventually("readyz notices", || pairs.network.part(A[0], "peer site-b") == "ok");
    pairs.network.kill_site(B[1]);
    for _ in 0..12 {
        let key = pairs.enc(A[0], ON_DEMAND).key();
        assert_eq!(pairs.dec(B[0], &[&key.0]).key(), key);
    }
}

#[test]
fn a_replica_that_hangs_costs_a_moment_and_its_late_work_changes_nothing() {
    needs!(Postgres, Curl);
    let pairs = Pairs::start("min_stored_per_pair = 0");
    pairs.enc(A[0], ON_DEMAND).key();
    pairs.network.daemon(B[0]).signal(Signal::STOP);
    let keys: Vec<_> = (0..6).map(|_| pairs.enc(A[0], ON_DEMAND).key()).collect();
    pairs.network.daemon(B[0]).signal(Signal::CONT);
    // It continues with the batches that it had received, which the other has stored meanwhile.
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(pairs.dec(B[index % 2], &[&key.0]).key(), *key);
        assert_eq!(pairs.dec(B[(index + 1) % 2], &[&key.0]).status, 400);
    }
}

#[test]
fn a_replica_that_missed_the_announcement_downloads_the_pools_with_the_first_batch_and_a_third_read_is_an_alarm()
 {
    needs!(Postgres, Curl);
    let mut pairs = Pairs::generate("min_stored_per_pair = 0");
    pairs.network.start_site(B[0]);
    pairs.network.start_site(A[0]);
    eventually("a set is there", || pairs.enc(A[0], ON_DEMAND).status == 200);
    // The second was never told of the set, and is the only one left.
    pairs.network.kill_site(B[0]);
    pairs.network.start_site(B[1]);
    eventually("keys flow through the second", || pairs.enc(A[0], ON_DEMAND).status == 200);
    let key = pairs.enc(A[0], ON_DEMAND).key();
    assert_eq!(pairs.dec(B[1], &[&key.0]).key(), key);
    // Two downloads by two replicas, as expected. A daemon checks the counts when it releases a set.
    let stopped = |pairs: &mut Pairs| {
        let mut daemon = pairs.network.sites[A[0]].take().unwrap();
        daemon.signal(Signal::TERM);
        assert!(daemon.wait().success());
        daemon.log()
    };
    let log = stopped(&mut pairs);
    assert!(!log.contains("unexpected extra read"), "{log}");

    pairs.network.start_site(B[0]);
    pairs.network.start_site(A[0]);
    eventually("a set is there", || pairs.enc(A[0], ON_DEMAND).status == 200);
    for _ in 0..4 {
        pairs.enc(A[0], ON_DEMAND).key();
    }
    // Both have it now. One of them restarts and reads again: one download more than there are replicas.
    pairs.network.kill_site(B[1]);
    pairs.network.kill_site(B[0]);
    pairs.network.start_site(B[0]);
    eventually("keys flow again", || pairs.enc(A[0], ON_DEMAND).status == 200);
    let log = stopped(&mut pairs);
    let alarm =
        log.lines().find(|line| line.contains("unexpected extra read")).unwrap_or_else(|| panic!("{log}"));
    for part in ["reader=site-b", "started=3", "expected=2"] {
        assert!(alarm.contains(part), "{alarm}");
    }
}

#[test]
fn when_no_replica_can_get_the_pools_any_more_a_new_set_is_made() {
    needs!(Postgres, Curl);
    let mut pairs = Pairs::generate("min_stored_per_pair = 0");
    pairs.network.start_site(B[0]);
    pairs.network.start_site(A[0]);
    eventually("a set is there", || pairs.enc(A[0], ON_DEMAND).status == 200);
    pairs.network.kill_site(B[0]);
    for server in 0..3 {
        pairs.network.kill_pool(server);
        pairs.network.start_pool(server);
    }
    pairs.network.start_site(B[1]);
    eventually("keys flow again", || pairs.enc(A[0], ON_DEMAND).status == 200);
    let key = pairs.enc(A[0], ON_DEMAND).key();
    assert_eq!(pairs.dec(B[1], &[&key.0]).key(), key);
}

#[test]
fn what_one_replica_took_is_voided_through_any_when_another_site_fails() {
    needs!(Postgres, Curl);
    let mut network = Network::generate(3);
    let database = on_postgres(&network, 1);
    let replica = network.add_replica(1);
    network.list_replicas();
    network.start_pools(3);
    network.start_sites();
    network.kill_site(2);
    let body = json!({"additional_slave_SAE_IDs": ["erin"], "number": 4});
    for _ in 0..4 {
        let refused = network.enc_post("alice", "bob", &body);
        assert_eq!(refused.status, 503, "{refused:?}");
    }
    eventually("site-b holds no key", || {
        let database = TestPostgres::database_of(&database);
        TestPostgres::shared().sql(database, &["SELECT coalesce(sum(length(slots)), 0) FROM records"]).trim()
            == "0"
    });
    let key = network.enc("alice", "bob", "").key();
    let url = format!("{}/api/v1/keys/alice/dec_keys?key_ID={}", network.site(replica).sae_url, key.0);
    assert_eq!(network.curl("bob").get(&url).key(), key);
}
