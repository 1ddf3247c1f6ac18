//! Keys ahead of demand, through real processes: what is ready outlasts an outage, a crash never hands a key
//! out twice, a graceful stop loses none.

use std::collections::HashSet;

use rustix::process::Signal;
use testkit::needs;
use testkit::{Network, TcpLink, eventually};

/// Two sites; site A reaches site B through a link that can be cut. Every pair keeps `floor` keys ready.
fn network_with_link(floor: u64) -> (Network, TcpLink) {
    let mut network = Network::generate(2);
    let peer_url = network.site(1).peer_url.clone();
    let port = peer_url.rsplit(':').next().unwrap().parse().unwrap();
    let spare = network.spare_port(0);
    network.configure(0, &peer_url, &format!("https://127.0.0.1:{spare}"));
    network.configure(0, "[store]", &format!("[keys]\nmin_stored_per_pair = {floor}\n\n[store]"));
    let link = TcpLink::start(spare, port);
    network.start_pools(3);
    network.start_sites();
    (network, link)
}

fn ready(network: &Network) -> u64 {
    network.status("alice", "bob")["stored_key_count"].as_u64().unwrap()
}

#[test]
fn what_is_ready_outlasts_an_outage_and_is_counted_truly_and_then_a_503_says_when_to_come_back() {
    needs!(Curl);
    let (network, link) = network_with_link(150);
    eventually("the reserve is full", || ready(&network) == 150);
    link.cut();
    let mut keys = Vec::new();
    for (asked, left) in [(1, 149), (49, 100), (60, 40)] {
        let answer = network.enc("alice", "bob", &format!("?number={asked}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        keys.extend(answer.keys());
        assert_eq!(ready(&network), left);
    }
    let refused = network.enc("alice", "bob", "?number=41");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.to_ascii_lowercase().contains("retry-after:"), "{}", refused.headers);
    assert_eq!(ready(&network), 40, "a refusal uses up nothing");
    keys.extend(network.enc("alice", "bob", "?number=40").keys());
    assert_eq!(ready(&network), 0);
    assert_eq!(network.enc("alice", "bob", "").status, 503);
    // Every key that was handed out meanwhile has its twin.
    for (id, key) in &keys {
        assert_eq!(network.dec("bob", "alice", &[id]).key(), (id.clone(), key.clone()));
    }
    assert_eq!(keys.iter().map(|(id, _)| id).collect::<HashSet<_>>().len(), 150);
    link.heal();
    // The use has raised the target.
    eventually("the reserve is full again", || ready(&network) >= 150);
}

#[test]
fn a_sigkill_loses_leased_keys_and_hands_none_out_again_and_every_answered_key_is_retrievable() {
    needs!(Curl);
    let (mut network, link) = network_with_link(200);
    eventually("the reserve is full", || ready(&network) == 200);
    let before = network.enc("alice", "bob", "?number=5").keys();
    network.kill_site(0);
    // What site A hands out from now on is what it had stored.
    link.cut();
    network.start_site(0);
    let left = ready(&network);
    assert!(left < 195, "keys that were leased when the daemon died are not counted: {left}");
    assert!(left >= 64, "blocks that were not leased are: {left}");
    let mut seen: HashSet<_> = before.iter().cloned().collect();
    for number in [left / 2, left - left / 2] {
        for key in network.enc("alice", "bob", &format!("?number={number}")).keys() {
            assert!(seen.insert(key), "a key was handed out twice");
        }
    }
    assert_eq!(network.enc("alice", "bob", "").status, 503);
    for (id, key) in &seen {
        assert_eq!(network.dec("bob", "alice", &[id]).key(), (id.clone(), key.clone()));
    }
}

#[test]
fn a_graceful_stop_gives_leased_keys_back() {
    needs!(Curl);
    let (mut network, link) = network_with_link(100);
    eventually("the reserve is full", || ready(&network) == 100);
    let mut seen: HashSet<_> = network.enc("alice", "bob", "?number=7").keys().into_iter().collect();
    // Refills that began before the cut end first, so that the count stands still.
    link.cut();
    let before = ready(&network);
    assert!(before >= 93, "{before}");
    let status = network.sites[0].take().unwrap().terminate();
    assert!(status.success(), "{status}");
    network.start_site(0);
    assert_eq!(ready(&network), before);
    for key in network.enc("alice", "bob", &format!("?number={before}")).keys() {
        assert!(seen.insert(key), "a key was handed out twice");
    }
}

#[test]
fn a_stopping_site_is_unready_first_and_serves_on_until_its_listeners_drain() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.configure(0, "[store]", "[limits]\ndrain_delay = \"2s\"\n\n[store]");
    network.start_pools(3);
    network.start_sites();
    let mut site = network.sites[0].take().unwrap();
    site.signal(Signal::TERM);
    eventually("readyz says no", || network.part(0, "daemon") == "failed");
    let key = network.enc("alice", "bob", "").key();
    assert!(site.wait().success());
    assert_eq!(network.dec("bob", "alice", &[&key.0]).key(), key);
}
