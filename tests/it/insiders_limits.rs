//! Limits of single SAEs and KMEs, over real processes: whoever reaches one is refused and told when to come
//! back, and nobody else notices.

use serde_json::json;

use testkit::postgres::TestPostgres;
use testkit::{Curl, CurlAnswer, Network, RawClient, RawH2, eventually, needs};

/// Adds a line to the `[[sae]]` or `[[peer]]` entry of `id` in the configuration of a site.
pub(crate) fn limit(network: &Network, site: usize, id: &str, limits: &str) {
    let entry = format!("id = \"{id}\"\n");
    // The first entry of this name after the site's own table.
    let config = &network.site(site).config;
    let text = std::fs::read_to_string(config).unwrap();
    let at = text.rfind(&entry).unwrap() + entry.len();
    std::fs::write(config, format!("{}limits = {{ {limits} }}\n{}", &text[..at], &text[at..])).unwrap();
}

fn metric(network: &Network, site: usize, series: &str) -> u64 {
    let answer = Curl::nobody(&network.ca()).get(&format!("{}/metrics", network.site(site).admin_url));
    let value = answer.body.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or(0)
}

fn limited(network: &Network, site: usize, listener: &str, identity: &str, limit: &str) -> u64 {
    let labels = format!("{{listener=\"{listener}\",identity=\"{identity}\",limit=\"{limit}\"}}");
    metric(network, site, &format!("dqkd_limited_total{labels}"))
}

fn assert_refused(answer: &CurlAnswer, message: &str) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.message(), message);
    let retry = answer.headers.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!(retry.trim().parse::<u32>().unwrap() >= 1, "{answer:?}");
}

/// Keys are made on demand, so that each request for keys is an order.
const ON_DEMAND: &str = "[keys]\nmin_stored_per_pair = 0\n\n[store]";

#[test]
fn an_sae_over_its_rates_is_told_when_to_come_back_others_are_served_and_new_limits_need_no_restart() {
    needs!(Curl);
    let mut network = Network::generate(2);
    limit(&network, 0, "alice", "requests_per_second = 1");
    limit(&network, 1, "bob", "keys_per_second = 1");
    network.start_pools(3);
    network.start_sites();
    let answers: Vec<_> = (0..12).map(|_| network.enc("alice", "bob", "")).collect();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((5..12).contains(&served), "five at once, and one a second: {served}");
    let refused = answers.iter().find(|answer| answer.status != 200).unwrap();
    assert_refused(refused, "alice has reached its limit of requests a second");
    assert!(limited(&network, 0, "sae", "alice", "requests_per_second") > 0);
    for _ in 0..12 {
        assert_eq!(network.enc("dave", "bob", "").status, 200);
    }

    let keys = network.enc("dave", "bob", "?number=100").keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "dave", &ids).keys(), keys);
    let more = network.enc("dave", "bob", "?number=100").keys();
    let ids: Vec<&str> = more.iter().map(|(id, _)| id.as_str()).collect();
    assert_refused(&network.dec("bob", "dave", &ids), "bob has reached its limit of keys a second");
    assert_eq!(limited(&network, 1, "sae", "bob", "keys_per_second"), 1);

    // Both files are read again.
    network.configure(0, "requests_per_second = 1 ", "requests_per_second = 1000 ");
    network.configure(1, "keys_per_second = 1 ", "keys_per_second = 1000 ");
    eventually("bob's refusal has used nothing up", || {
        let answer = network.dec("bob", "dave", &ids);
        answer.status == 200 && answer.keys() == more
    });
    eventually("alice is served as fast as she asks", || {
        (0..20).all(|_| network.enc("alice", "bob", "").status == 200)
    });
}

#[test]
fn an_sae_with_its_share_stored_gets_no_new_keys_until_some_are_fetched_and_others_do() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in 0..2 {
        network.configure(site, "[store]", ON_DEMAND);
    }
    limit(&network, 0, "alice", "stored_keys = 8");
    network.start_pools(3);
    network.start_sites();
    let first = network.enc("alice", "bob", "?number=5").keys();
    let full = "SAE alice may have no more keys stored at KME site-a (stored_keys); there is room again when \
                some are retrieved or expire";
    assert_refused(&network.enc("alice", "bob", "?number=5"), full);
    assert!(limited(&network, 0, "sae", "alice", "stored_keys") >= 1);
    assert_eq!(network.enc("alice", "bob", "?number=3").keys().len(), 3);
    assert_refused(&network.enc("alice", "bob", ""), full);
    assert_eq!(network.enc("dave", "bob", "?number=20").keys().len(), 20);
    // What counts at site-a is the copies that the masters may fetch there.
    eventually("they are counted", || metric(&network, 0, "dqkd_stored_keys{source=\"site-a\"}") == 28);
    let ids: Vec<&str> = first.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("alice", "bob", &ids).keys(), first);
    eventually("what alice fetched makes room", || network.enc("alice", "bob", "?number=4").status == 200);
    // And bob has what he was to have, whoever was refused.
    assert_eq!(network.dec("bob", "alice", &ids).keys(), first);
}

#[test]
fn a_peer_with_its_share_stored_is_refused_without_a_tombstone_until_keys_are_fetched() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in 0..2 {
        network.configure(site, "[store]", ON_DEMAND);
    }
    limit(&network, 1, "site-a", "stored_keys = 10");
    network.start_pools(3);
    network.start_sites();
    let first = network.enc("alice", "bob", "?number=8").keys();
    for _ in 0..3 {
        assert_refused(&network.enc("alice", "bob", "?number=8"), "KME site-b stores no more keys now");
    }
    assert_eq!(limited(&network, 1, "peer", "site-a", "stored_keys"), 3, "no push was repeated");
    // Nobody else's keys are refused: dave's own site stores them.
    assert_eq!(network.enc("alice", "dave", "?number=8").status, 200);
    let ids: Vec<&str> = first.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids).keys(), first);
    eventually("what bob fetched makes room", || network.enc("alice", "bob", "?number=8").status == 200);
    assert_eq!(metric(&network, 1, "dqkd_tombstones{source=\"site-a\"}"), 0);
    let left_nothing = "dqkd_peer_calls_total{peer=\"site-b\",call=\"/peer/v1/void\",outcome=\"answered\"}";
    assert_eq!(metric(&network, 0, left_nothing), 0, "a refused push needs no void");
}

#[test]
fn keys_that_would_live_longer_than_a_site_allows_are_refused_and_the_log_names_both_values() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.configure(0, "[store]", "[keys]\nttl = \"49h\"\nmin_stored_per_pair = 0\n\n[store]");
    network.start_pools(3);
    network.start_sites();
    let refused = network.enc("alice", "bob", "");
    assert_refused(&refused, "KME site-b refused the keys");
    let log = network.daemon(0).log();
    let both = "these keys would live 176400 s (keys.ttl at KME site-a); at KME site-b they may live 86400 s";
    assert!(log.contains(both), "{log}");
    network.kill_site(1);
    network.configure(1, "[store]", "[limits.kme]\nkey_ttl_max = \"49h\"\n\n[store]");
    network.start_site(1);
    eventually("keys flow", || network.enc("alice", "bob", "").status == 200);
}

#[test]
fn what_one_daemon_of_a_site_stored_counts_at_the_other() {
    needs!(Curl, Postgres);
    let mut network = Network::generate(2);
    for site in 0..2 {
        network.configure(site, "[store]", ON_DEMAND);
    }
    let file = format!("sqlite://{}.db", network.site(0).id);
    network.configure(0, &file, &TestPostgres::shared().new_database());
    limit(&network, 0, "alice", "stored_keys = 8");
    let other = network.add_replica(0);
    network.list_replicas();
    network.start_pools(3);
    network.start_sites();
    assert_eq!(network.enc("alice", "bob", "?number=6").keys().len(), 6);
    let series = "dqkd_stored_keys{source=\"site-a\"}";
    eventually("the other daemon has counted", || metric(&network, other, series) == 6);
    let url = format!("{}/api/v1/keys/bob/enc_keys", network.site(other).sae_url);
    let answer = network.curl("alice").post(&url, &json!({ "number": 3 }).to_string());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.message().contains("may have no more keys stored"), "{answer:?}");
    let answer = network.curl("alice").post(&url, &json!({ "number": 2 }).to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sae_with_as_many_connections_as_it_may_have_gets_no_other_and_the_metric_names_it() {
    needs!(Curl);
    let mut network = Network::generate(2);
    limit(&network, 0, "alice", "connections = 2");
    network.start_pools(3);
    network.start_sites();
    let (site, alice) = network.sae("alice");
    let at = site.sae_url.trim_start_matches("https://").parse().unwrap();
    let client = RawClient::new(&network.ca(), &alice.cert, &alice.key);
    let answer = async |h2: &mut RawH2| {
        let stream = h2.get("/api/v1/keys/bob/status").await?;
        h2.answer(stream).await.map(|answer| answer.status)
    };
    let (mut one, mut two) = (client.h2(at).await.unwrap(), client.h2(at).await.unwrap());
    assert_eq!((answer(&mut one).await.unwrap(), answer(&mut two).await.unwrap()), (200, 200));
    // It ends with the handshake, or a moment later.
    let third = match client.h2(at).await {
        Ok(mut h2) => answer(&mut h2).await,
        Err(error) => Err(error),
    };
    assert!(third.is_err(), "{third:?}");
    assert_eq!(network.status_code("dave", "bob"), 200);
    assert_eq!(limited(&network, 0, "sae", "alice", "connections"), 1);
    drop(one);
    eventually("a connection that ended makes room", || network.status_code("alice", "bob") == 200);
}
