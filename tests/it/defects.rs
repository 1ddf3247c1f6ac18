//! What went wrong in other key management entities must not happen here: docs/defects-of-others.md names the
//! test of each. This module has those tests that fit no other.

use std::collections::HashSet;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine as _;

use testkit::Killed;
use testkit::needs;
use testkit::{Curl, CurlAnswer, Network, PATIENCE, TcpLink, dqkd, eventually};

const NOT_FOUND: &str = "one or more keys specified are not found on KME";
/// How long one call may take on a busy machine. Elsewhere it took minutes, or never ended.
const BOUND: Duration = Duration::from_secs(20);

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

fn kme(network: &Network, name: &str) -> Curl {
    let pki = network.pki();
    Curl::pem(&network.ca(), &pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key")))
}

fn enc_url(network: &Network, sae: &str, slave: &str) -> String {
    format!("{}/api/v1/keys/{slave}/enc_keys", network.sae(sae).0.sae_url)
}

/// The lines of `--write-out`, one for each transfer; bodies go to files.
fn transfers(answer: &CurlAnswer) -> Vec<String> {
    let lines = answer.body.lines().filter(|line| !line.is_empty()).map(str::to_owned);
    lines.chain([format!("{} {}", answer.status, answer.version)]).collect()
}

#[test]
fn idle_connections_without_a_client_hello_block_nobody_at_any_listener() {
    needs!(Curl);
    let network = Network::start(2);
    let (sae, peer, pool) = (&network.site(0).sae_url, &network.site(0).peer_url, &network.pool(0).url);
    let idle: Vec<TcpStream> = [sae, peer, pool]
        .iter()
        .flat_map(|url| (0..64).map(|_| TcpStream::connect(("127.0.0.1", port_of(url))).unwrap()))
        .collect();
    let start = Instant::now();
    network.enc("alice", "bob", "").key();
    let site_b = kme(&network, "site-b");
    assert_eq!(site_b.get(&format!("{peer}/peer/v1/info")).status, 200);
    let refused = site_b.post(&format!("{pool}/pool/v1/pools"), "{}");
    assert!((400..500).contains(&refused.status), "it answers: {refused:?}");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    drop(idle);
}

#[test]
fn bursts_of_aborted_clients_lose_nothing_at_either_site() {
    needs!(Curl);
    let network = Network::start(2);
    let sides = [("alice", "bob"), ("bob", "alice")];
    let mut answered: Vec<_> =
        sides.iter().map(|(sae, slave)| (*sae, *slave, network.enc(sae, slave, "").key())).collect();
    let mut cut_off = 0;
    for burst in 0..30 {
        let (sae, slave) = sides[burst % 2];
        let (_, files) = network.sae(sae);
        let curl = Curl::pem(&network.ca(), &files.cert, &files.key);
        let seconds = format!("{:.3}", 0.010 + 0.010 * f64::from(u8::try_from(burst).unwrap()));
        let version = if burst % 4 < 2 { "--http1.1" } else { "--http2" };
        let url = format!("{}?number=64&burst=[1-8]", enc_url(&network, sae, slave));
        let args = ["-Z", "--parallel-immediate", "--max-time", &seconds, version, "-o", "/dev/null", &url];
        if curl.call(&args).exit != 0 {
            cut_off += 1;
        }
        if burst % 10 == 9 {
            answered.push((sae, slave, network.enc(sae, slave, "").key()));
        }
    }
    assert!(cut_off > 0, "clients went away");
    for (sae, slave) in sides {
        answered.push((sae, slave, network.enc(sae, slave, "").key()));
    }
    for (sae, slave, key) in answered {
        assert_eq!(network.dec(slave, sae, &[&key.0]).key(), key);
    }
}

/// Whether the ID reveals the key: it is the key or a common hash of it, perhaps as a UUID of version 3 to 8,
/// which changes bytes 6 and 8.
fn id_tells_of_key(id: &str, key: &[u8]) -> bool {
    let id = hex::decode(id.replace('-', "")).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(key).into_bytes();
    let mut inputs = vec![key.to_vec(), base64, hex::encode(key).into_bytes()];
    // The name spaces of RFC 9562: nil, DNS, URL, OID, X.500.
    inputs.push([&[0; 16], key].concat());
    for first in ["6ba7b810", "6ba7b811", "6ba7b812", "6ba7b814"] {
        let space = hex::decode(format!("{first}9dad11d180b400c04fd430c8")).unwrap();
        inputs.push([&space, key].concat());
    }
    let algorithms = [
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        &digest::SHA256,
        &digest::SHA384,
        &digest::SHA512,
        &digest::SHA3_256,
        &digest::SHA3_384,
        &digest::SHA3_512,
    ];
    let hashes = inputs
        .iter()
        .flat_map(|input| algorithms.map(|algorithm| digest::digest(algorithm, input).as_ref().to_vec()));
    hashes.chain([key.to_vec()]).any(|bytes| {
        let shows = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        shows(&id[..6]) || shows(&id[9..])
    })
}

#[test]
fn key_ids_are_of_version_4_and_say_nothing_of_their_keys() {
    needs!(Curl);
    // The search finds the defect of others: the ID was the truncated SHA-1 of the key.
    let commitment = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[7; 32]);
    assert!(id_tells_of_key(&hex::encode(&commitment.as_ref()[..16]), &[7; 32]));
    let network = Network::start(2);
    let mut seen = HashSet::new();
    for query in ["?number=128", "?number=64&size=128", "", "?size=4096"] {
        for (id, key) in network.enc("alice", "bob", query).keys() {
            let uuid: uuid::Uuid = id.parse().unwrap();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122), "{id}");
            let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
            assert!(!id_tells_of_key(&id, &key), "{id}");
            assert!(seen.insert(id));
        }
    }
    assert_eq!(seen.len(), 194);
}

#[test]
fn two_sites_started_together_that_ask_each_other_at_once_do_not_deadlock() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.start_pools(3);
    network.start_site(0);
    network.start_site(1);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for connection in 0..8 {
            let network = &network;
            scope.spawn(move || {
                let (sae, slave) = [("alice", "bob"), ("bob", "alice")][connection % 2];
                for _ in 0..4 {
                    // Until the sites have reached each other, 503 is a correct answer.
                    eventually("keys come", || {
                        let answer = network.enc(sae, slave, "?number=64");
                        assert!([200, 503].contains(&answer.status), "{answer:?}");
                        answer.status == 200
                    });
                }
            });
        }
    });
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    for (sae, slave) in [("alice", "bob"), ("bob", "alice")] {
        let key = network.enc(sae, slave, "").key();
        assert_eq!(network.dec(slave, sae, &[&key.0]).key(), key);
    }
}

#[test]
fn a_second_request_leaves_the_first_undelivered_key_alone_and_nobody_can_stop_a_site() {
    needs!(Curl);
    let network = Network::start(2);
    let keys: Vec<_> = (0..3).map(|_| network.enc("alice", "bob", "").key()).collect();
    let (site, files) = network.sae("alice");
    let alice = Curl::pem(&network.ca(), &files.cert, &files.key);
    for base in [&site.sae_url, &site.peer_url, &network.pool(0).url, &site.admin_url] {
        for path in
            ["/stop", "/shutdown", "/quit", "/api/v1/stop", "/api/v1/kme/stop", "/api/v1/kme/key-pool"]
        {
            let url = format!("{base}{path}");
            for answer in [alice.get(&url), alice.post(&url, "{}")] {
                // 0: an SAE gets no connection at the listeners for KMEs.
                let is_refused = [401, 404, 405].contains(&answer.status) || answer.exit != 0;
                assert!(is_refused, "{url}: {answer:?}");
            }
        }
    }
    for key in &keys {
        assert_eq!(&network.dec("bob", "alice", &[&key.0]).key(), key);
    }
}

#[test]
fn nothing_on_standard_output_holds_a_key() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.start_pools(3);
    network.start_site(1);
    let config = network.site(0).config.clone();
    let printed = network.dir().join("stdout");
    let file = std::fs::File::create(&printed).unwrap();
    let mut site_a = dqkd();
    site_a.arg("serve").arg("--config").arg(&config).stdout(file).stderr(Stdio::null());
    let site_a = Killed(site_a.spawn().unwrap());
    let text = || std::fs::read_to_string(&printed).unwrap();
    eventually("it listens", || text().lines().count() == 3);
    eventually("keys come", || network.enc("alice", "bob", "").status == 200);
    let mut keys = network.enc("alice", "bob", "?number=8").keys();
    keys.extend(network.enc("bob", "alice", "?number=8").keys());
    let ids: Vec<&str> = keys[8..].iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("alice", "bob", &ids).keys(), keys[8..]);
    drop(site_a);
    assert_eq!(text().lines().count(), 3, "only where it listens: {}", text());
    for (_, key) in &keys {
        assert!(!text().contains(key), "a key was printed");
    }
}

#[test]
fn too_many_keys_are_refused_at_once_and_a_client_that_leaves_a_large_request_holds_nothing_up() {
    needs!(Curl);
    let network = Network::start(2);
    let start = Instant::now();
    assert_eq!(network.enc("alice", "bob", "?number=100000").status, 400);
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    let status = network.status("alice", "bob");
    let (number, size) = (&status["max_key_per_request"], &status["max_key_size"]);
    let url = format!("{}?number={number}&size={size}", enc_url(&network, "alice", "bob"));
    for seconds in ["0.05", "0.1", "0.2", "0.4"] {
        network.curl("alice").call(&["--max-time", seconds, "-o", "/dev/null", &url]);
        let start = Instant::now();
        let key = network.enc("alice", "bob", "").key();
        assert_eq!(network.dec("bob", "alice", &[&key.0]).key(), key);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn fifty_parallel_connections_get_keys_or_an_honest_503_and_no_id_or_value_repeats() {
    needs!(Curl);
    let network = Network::start(2);
    let (_, files) = network.sae("alice");
    let curl = Curl::pem(&network.ca(), &files.cert, &files.key);
    let dir = network.dir().join("answers");
    std::fs::create_dir(&dir).unwrap();
    let (out, url) = (dir.join("#1").display().to_string(), enc_url(&network, "alice", "bob"));
    let url = format!("{url}?call=[1-50]");
    let args =
        ["-Z", "--parallel-immediate", "--parallel-max", "50", "--http1.1", "-o", out.as_str(), url.as_str()];
    let (mut ids, mut values) = (HashSet::new(), HashSet::new());
    eventually("all fifty get a key", || {
        let codes = transfers(&curl.call(&args));
        assert_eq!(codes.len(), 50);
        assert!(codes.iter().all(|code| code == "200 1.1" || code == "503 1.1"), "{codes:?}");
        for call in 1..=50 {
            let body = std::fs::read(dir.join(call.to_string())).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let Some(keys) = body["keys"].as_array() else {
                assert!(body["message"].is_string(), "a refusal says why");
                continue;
            };
            assert_eq!(keys.len(), 1);
            assert!(ids.insert(keys[0]["key_ID"].clone()), "an ID repeats");
            assert!(values.insert(keys[0]["key"].clone()), "a value repeats");
        }
        codes.iter().all(|code| code == "200 1.1")
    });
}

#[test]
fn a_hundred_requests_on_one_connection_are_served_over_http_1_and_2() {
    needs!(Curl);
    let network = Network::start(2);
    let (_, files) = network.sae("alice");
    let url = format!("{}?call=[1-100]", enc_url(&network, "alice", "bob"));
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let curl = Curl::pem(&network.ca(), &files.cert, &files.key);
        let format = "\n%{http_code} %{http_version} %{num_connects}";
        let lines = transfers(&curl.call(&[option, "-o", "/dev/null", "--write-out", format, &url]));
        let mut expected = vec![format!("200 {version} 1")];
        expected.extend(vec![format!("200 {version} 0"); 99]);
        assert_eq!(lines, expected);
    }
}

#[test]
fn whatever_alice_was_answered_bob_can_retrieve_at_once_also_over_a_link_that_breaks() {
    needs!(Curl);
    let mut network = Network::generate(2);
    let peer_url = network.site(1).peer_url.clone();
    let spare = network.spare_port(0);
    network.configure(0, &peer_url, &format!("https://127.0.0.1:{spare}"));
    let link = TcpLink::start(spare, port_of(&peer_url));
    network.start_pools(3);
    network.start_sites();
    let (done, served, refused) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let unknown = || uuid::Uuid::new_v4().to_string();
    std::thread::scope(|scope| {
        let breaker = scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(8);
            while !done.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(300));
                link.cut();
                std::thread::sleep(Duration::from_millis(20));
                link.heal();
            }
        });
        let callers: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        assert_eq!(network.dec("bob", "alice", &[&unknown()]).message(), NOT_FOUND);
                        eventually("keys come", || {
                            let answer = network.enc("alice", "bob", "?number=32");
                            if answer.status != 200 {
                                refused.lock().unwrap().push(answer.status);
                                return false;
                            }
                            let keys = answer.keys();
                            let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
                            // Together with an ID that site B does not know: no key is used up.
                            let other = unknown();
                            let with_unknown = [&ids[..], &[other.as_str()]].concat();
                            assert_eq!(network.dec("bob", "alice", &with_unknown).message(), NOT_FOUND);
                            assert_eq!(network.dec("bob", "alice", &ids).keys(), keys);
                            served.fetch_add(1, Ordering::Relaxed);
                            true
                        });
                    }
                })
            })
            .collect();
        let failed =
            callers.into_iter().map(|caller| caller.join().is_err()).filter(|failed| *failed).count();
        done.store(true, Ordering::Relaxed);
        breaker.join().unwrap();
        assert_eq!(failed, 0, "callers failed");
    });
    assert_eq!(served.load(Ordering::Relaxed), 50);
    let refused = refused.into_inner().unwrap();
    assert!(refused.iter().all(|status| *status == 503), "{refused:?}");
}
