//! Several batches in one push: between two sites, to an older release, and from a site that lies.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use mtls::identity::Kind;
use mtls::{ListenerLimits, ListenerTls, TlsFiles, TlsStore, Versions, listener};
use parking_lot::Mutex;
use serde_json::{Value, json};
use testkit::{Curl, CurlAnswer, Network, eventually, needs};
use tokio_util::sync::CancellationToken;

use crate::insiders_limits::limit;
use crate::stored::stored_batches;
use crate::uninvited::forged;

/// No reserve: each request for 128 keys makes two batches.
const ON_DEMAND: &str = "[keys]\nmin_stored_per_pair = 0\n\n[store]";

/// The sum of a site's series of `name` with these labels.
fn count(network: &Network, site: usize, name: &str, labels: &str) -> u64 {
    let text = network.metrics(site);
    let of_name = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
    of_name.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

fn calls(network: &Network, site: usize) -> u64 {
    count(network, site, "dqkd_peer_calls_total", "call=\"/peer/v1/batches\",outcome=\"answered\"")
}

fn batches(network: &Network, site: usize) -> u64 {
    count(network, site, "dqkd_batches_pushed_total", "outcome=\"stored\"")
}

#[test]
fn sites_that_both_can_push_several_batches_at_once_and_have_the_same_keys() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in 0..2 {
        network.configure(site, "[store]", ON_DEMAND);
    }
    network.start_pools(3);
    network.start_sites();
    // A site pushes one at a time until it has asked the other what it takes.
    for (site, master, slave) in [(0, "alice", "bob"), (1, "bob", "alice")] {
        eventually("batches are pushed together", || {
            network.enc(master, slave, "?number=128").keys();
            batches(&network, site) > calls(&network, site)
        });
        let before = (calls(&network, site), batches(&network, site));
        for _ in 0..5 {
            let keys = network.enc(master, slave, "?number=128").keys();
            let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(network.dec(slave, master, &ids).keys(), keys);
        }
        let after = (calls(&network, site), batches(&network, site));
        assert_eq!((after.0 - before.0, after.1 - before.1), (5, 10), "{master}: calls and batches");
    }
    assert_eq!(count(&network, 1, "dqkd_batches_received_total", "outcome=\"stored\""), batches(&network, 0));
}

/// A listener in the place of site B, which keeps what site A pushes and acknowledges all of it.
struct InPlaceOfB {
    pushed: Arc<Mutex<Vec<Value>>>,
    stop: CancellationToken,
}

impl InPlaceOfB {
    /// `most`: how many batches of one push its info says that it takes; `None` for an older release.
    async fn start(network: &Network, most: Option<u64>) -> Self {
        let pki = network.pki();
        let tls = TlsStore::open(TlsFiles {
            ca: network.ca(),
            cert: pki.join("site-b.pem"),
            key: pki.join("site-b.key"),
            crl: None,
        });
        let tls = ListenerTls::Mutual {
            store: tls.unwrap(),
            rules: testkit::spiffe_rules(),
            accepts: &[Kind::Kme],
            versions: Versions::Latest,
        };
        let at: SocketAddr = network.site(1).peer_url.trim_start_matches("https://").parse().unwrap();
        let tcp = tokio::net::TcpListener::bind(at).await.unwrap();
        let (pushed, stop) = (Arc::<Mutex<Vec<Value>>>::default(), CancellationToken::new());
        let limits = ListenerLimits::default();
        let router = Self::router(most, Arc::clone(&pushed));
        tokio::spawn(listener::serve("peer", tcp, tls, router, limits, stop.clone()));
        Self { pushed, stop }
    }

    fn router(most: Option<u64>, pushed: Arc<Mutex<Vec<Value>>>) -> Router {
        let info = async move || {
            let now = time::OffsetDateTime::now_utc();
            let mut info = json!({
                "kme_id": "site-b", "version": "0", "protocols": ["1"], "suites": ["dqkd-blast-1"],
                "clock": now.format(&time::format_description::well_known::Rfc3339).unwrap(),
                "limits": {"min_key_size": 8, "max_key_size": 65536, "max_keys_per_batch": 64,
                    "clock_skew_max_secs": 30},
            });
            if let Some(most) = most {
                info["limits"]["max_batches_per_push"] = json!(most);
            }
            info.to_string()
        };
        let stored = |batch: &Value| json!({"batch_id": batch["batch_id"], "keys": batch["key_ids"].as_array().unwrap().len()});
        let batches = async move |body: String| {
            let body: Value = serde_json::from_str(&body).unwrap();
            let answer = match &body {
                Value::Array(list) => list.iter().map(stored).collect(),
                one => stored(one),
            };
            pushed.lock().push(body);
            answer.to_string()
        };
        Router::new()
            .route("/peer/v1/info", get(info))
            .route("/peer/v1/pool-sets", post(async || json!({"left_bits": 1_u64 << 20}).to_string()))
            .route("/peer/v1/batches", post(batches))
    }
}

/// Site A runs, and somebody else in the place of site B.
fn with_site_a_only() -> Network {
    let mut network = Network::generate(2);
    network.configure(0, "[store]", ON_DEMAND);
    network.start_pools(3);
    network.start_site(0);
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_release_gets_one_batch_at_a_time() {
    needs!(Curl);
    let network = with_site_a_only();
    let older = InPlaceOfB::start(&network, None).await;
    eventually("site A reaches it", || network.enc("alice", "bob", "?number=128").status == 200);
    // By now site A has its answer to the question what it takes.
    eventually("it was asked", || network.part(0, "peer site-b") == "ok");
    for _ in 0..3 {
        assert_eq!(network.enc("alice", "bob", "?number=128").keys().len(), 128);
    }
    let pushed = older.pushed.lock().clone();
    assert!(pushed.len() >= 8 && pushed.iter().all(Value::is_object), "{} pushes", pushed.len());
    assert_eq!(calls(&network, 0), batches(&network, 0));
    older.stop.cancel();
}

/// It has the metadata of real batches, as an insider has, and changes one batch of several.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_list_with_one_forged_batch_none_is_stored() {
    needs!(Curl);
    let mut network = with_site_a_only();
    let recorder = InPlaceOfB::start(&network, Some(4)).await;
    let mut lists = Vec::new();
    eventually("site A pushes lists", || {
        network.enc("alice", "bob", "?number=128");
        lists = recorder.pushed.lock().iter().filter(|push| push.is_array()).cloned().collect();
        lists.len() >= 2
    });
    recorder.stop.cancel();
    network.kill_site(0);
    eventually("its port is free", || {
        let at = network.site(1).peer_url.trim_start_matches("https://").to_owned();
        std::net::TcpListener::bind(at).is_ok()
    });
    network.start_site(1);

    let site_a =
        Curl::pem(&network.ca(), &network.pki().join("site-a.pem"), &network.pki().join("site-a.key"));
    let url = format!("{}/peer/v1/batches", network.site(1).peer_url);
    let push = |list: &Value| site_a.post(&url, &list.to_string());
    let stored = || tokio::task::block_in_place(|| stored_batches(&network.database(1)));
    let refused = |answer: &CurlAnswer, status: u16, part: &str| {
        assert!(answer.status == status && answer.message().contains(part), "{part}: {answer:?}");
        assert_eq!(stored(), 0, "{part}");
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut list = lists[0].clone();
        change(&mut list[1]);
        list
    };
    refused(&push(&json!([])), 422, "a push has 1 to 4 batches");
    refused(&push(&json!(vec![lists[0][0].clone(); 5])), 422, "a push has 1 to 4 batches");
    refused(&push(&changed(&|b| b["master"] = json!("bob"))), 403, "SAE bob lives at KME site-b");
    refused(&push(&changed(&|b| b["pool_set"]["words"] = json!(1 << 16))), 422, "of one pool set");
    refused(&push(&changed(&|b| b["seed"] = json!("5eed"))), 400, "unexpected shape");
    let named_alike = changed(&|b| b["batch_id"] = lists[0][0]["batch_id"].clone());
    refused(&push(&named_alike), 409, "already has this batch ID");

    // The real ones are stored, each once, however often they come.
    for _ in 0..2 {
        let answer = push(&lists[0]);
        assert_eq!(answer.status, 200, "{answer:?}");
        let ids =
            |list: &Value| list.as_array().unwrap().iter().map(|b| b["batch_id"].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&answer.json()), ids(&lists[0]));
        assert_eq!(stored(), 2);
    }
    let one = push(&lists[0][1]);
    assert_eq!((one.status, &one.json()["batch_id"]), (200, &lists[0][1]["batch_id"]), "an object for one");
    // A confirmation value that does not match: nothing is stored, and the set has ended.
    let mut list = lists[1].clone();
    list[1]["confirm"] = json!("00".repeat(16));
    let mismatch = push(&list);
    assert!(mismatch.message().contains("confirmation value does not match"), "{mismatch:?}");
    assert_ne!(push(&lists[1]).status, 200);
    assert_eq!(stored(), 2);
}

#[test]
fn a_limit_on_keys_counts_all_batches_of_a_push() {
    needs!(Curl);
    let mut network = Network::generate(2);
    limit(&network, 0, "site-b", "keys_per_second = 1");
    network.start_pools(3);
    network.start_site(0);
    let pki = network.pki();
    let site_b = Curl::pem(&network.ca(), &pki.join("site-b.pem"), &pki.join("site-b.key"));
    let url = format!("{}/peer/v1/batches", network.site(0).peer_url);
    let mut batch = forged(&network);
    let id = |n: u8| format!("00000007-0000-4000-8000-0000000000{n:02x}");
    batch["key_ids"] = (0..64).map(id).collect();
    let push = |batches: usize| site_b.post(&url, &json!(vec![batch.clone(); batches]).to_string());
    // As many as one push may have are let through after a pause, and refused for their pools.
    let first = push(4);
    assert_eq!(first.status, 424, "{first:?}");
    for batches in [4, 2, 1] {
        let refused = push(batches);
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.message(), "site-b has reached its limit of keys a second");
    }
}
