//! The main job over real processes: keys shared between sites by curl.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use serde_json::json;

use testkit::{Curl, CurlAnswer, Network, Sae};

use crate::stored::stored_keys;
use testkit::needs;

fn decoded_bits(key: &str) -> usize {
    base64::engine::general_purpose::STANDARD.decode(key).unwrap().len() * 8
}

#[test]
fn two_curl_calls_of_the_mission_give_the_same_key_once() {
    needs!(Curl);
    let network = Network::start(2);
    let (id, key) = network.enc("alice", "site-b", "").key();
    assert_eq!(decoded_bits(&key), 256);
    assert_eq!(network.dec("bob", "site-a", &[&id]).key(), (id.clone(), key));
    let again = network.dec("bob", "site-a", &[&id]);
    assert_eq!(again.status, 400);
    assert_eq!(again.message(), "one or more keys specified are not found on KME");
    // A key addressed to the site has one retrieval there, and bob used it.
    assert_eq!(network.dec("carol", "site-a", &[&id]).status, 400);
}

#[test]
fn sae_ids_in_the_paths_bind_the_key_to_that_sae() {
    needs!(Curl);
    let network = Network::start(2);
    let (id, key) = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("carol", "alice", &[&id]).status, 401);
    assert_eq!(network.dec("bob", "dave", &[&id]).status, 400, "the path names another master");
    assert_eq!(network.dec("bob", "alice", &[&id.to_uppercase()]).key(), (id.clone(), key.clone()));
    assert_eq!(network.dec("bob", "alice", &[&id]).status, 400);
    // DQKD extension: the master retrieves the key by its ID at its own site; the path names the peer.
    assert_eq!(network.dec("alice", "bob", &[&id]).key(), (id.clone(), key));
    assert_eq!(network.dec("alice", "bob", &[&id]).status, 400);
}

#[test]
fn numbers_sizes_and_both_verbs_are_served() {
    needs!(Curl);
    let mut network = Network::generate(2);
    // This tests the answers, not the times: an unoptimised build on a busy machine is slow.
    for site in 0..2 {
        let limits = "[limits]\nrequest_timeout = \"1m\"\npeer_timeout = \"1m\"\n\n[store]";
        network.configure(site, "[store]", limits);
    }
    network.start_pools(3);
    network.start_sites();
    let keys = network.enc("alice", "bob", "?number=3&size=512").keys();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|(_, key)| decoded_bits(key) == 512));
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids).keys(), keys);

    // More than one batch, and more bits than one extraction gives.
    let many = network.enc_post("alice", "bob", &json!({"number": 128, "size": 2048})).keys();
    let distinct: BTreeSet<&String> = many.iter().flat_map(|(id, key)| [id, key]).collect();
    assert_eq!(distinct.len(), 256, "128 distinct IDs and 128 distinct keys");
    assert!(many.iter().all(|(_, key)| decoded_bits(key) == 2048));
    let ids: Vec<&str> = many.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids).keys(), many);

    for size in [8, 65_536] {
        let (id, key) = network.enc("alice", "bob", &format!("?size={size}")).key();
        assert_eq!(decoded_bits(&key), size);
        assert_eq!(network.dec_get("bob", "alice", &id).key(), (id, key));
    }
}

#[test]
fn status_names_both_sites_and_counts_deliverable_keys() {
    needs!(Curl);
    let network = Network::start(2);
    testkit::eventually("a pool set is ready", || {
        network.status("alice", "bob")["stored_key_count"].as_u64().unwrap() > 0
    });
    let status = network.status("alice", "bob");
    assert_eq!(status["source_KME_ID"], "site-a");
    assert_eq!(status["target_KME_ID"], "site-b");
    assert_eq!(status["master_SAE_ID"], "alice");
    assert_eq!(status["slave_SAE_ID"], "bob");
    assert_eq!(status["key_size"], 256);
    assert_eq!(status["max_key_per_request"], 128);
    assert_eq!(network.status("bob", "site-a")["slave_SAE_ID"], "site-a");
}

#[test]
fn additional_slaves_at_several_sites_get_the_same_key_and_nobody_else_does() {
    needs!(Curl);
    let network = Network::start(3);
    let body = json!({"additional_slave_SAE_IDs": ["erin", "dave"]});
    let (id, key) = network.enc_post("alice", "bob", &body).key();
    let expected = (id.clone(), key);
    // A party that is not named gets nothing, neither first nor after the last retrieval at its site.
    assert_eq!(network.dec("carol", "alice", &[&id]).status, 401);
    for sae in ["bob", "erin", "dave"] {
        assert_eq!(network.dec(sae, "alice", &[&id]).key(), expected, "{sae}");
        assert_eq!(network.dec(sae, "alice", &[&id]).status, 400, "{sae} again");
    }
    assert!([400, 401].contains(&network.dec("carol", "alice", &[&id]).status));
    assert_eq!(network.dec("alice", "bob", &[&id]).key(), expected);
    for site in 0..3 {
        assert_eq!(stored_keys(&network.database(site)), 0, "the last retrieval erases the key");
    }
}

#[test]
fn extensions_tell_the_source_and_the_expiry_of_keys_from_real_pool_servers() {
    needs!(Curl);
    let network = Network::start(2);
    let body = json!({"extension_optional": [{"dqkd_source_grade": {}}, {"dqkd_expiry": {}}]});
    let told = network.enc_post("alice", "bob", &body).json()["keys"][0]["key_extension"].clone();
    let grade = json!({"entropy_sources": ["os"], "pools": 3, "hybrid_tls": true});
    assert_eq!(told["dqkd_source_grade"], grade);
    assert!(told["dqkd_expiry"]["expires_at"].as_str().unwrap().ends_with('Z'), "{told}");
    let demand =
        json!({"extension_mandatory": [{"dqkd_source_grade": {"hybrid_tls": true, "min_pools": 3}}]});
    network.enc_post("alice", "bob", &demand).key();
    let too_much = json!({"extension_mandatory": [{"dqkd_source_grade": {"min_pools": 4}}]});
    let refused = network.enc_post("alice", "bob", &too_much);
    assert_eq!(refused.status, 400);
    assert_eq!(refused.message(), "not all extension_mandatory request options could be met");
}

#[test]
fn two_saes_of_one_site_share_a_key_without_any_peer() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.start_pools(3);
    network.start_site(0);
    let (id, key) = network.enc("alice", "dave", "").key();
    assert_eq!(network.dec("dave", "alice", &[&id]).key(), (id, key));
}

#[test]
fn strict_etsi_sites_give_the_master_no_second_copy() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.configure(0, "[store]", "[etsi014]\nstrict = true\n\n[store]");
    network.start_pools(3);
    network.start_sites();
    assert_eq!(network.enc("alice", "site-b", "").status, 400, "a path names an SAE");
    let (id, key) = network.enc("alice", "bob", "").key();
    let refused = network.dec("alice", "bob", &[&id]);
    assert!([400, 401].contains(&refused.status), "{refused:?}");
    assert_eq!(network.dec("bob", "alice", &[&id]).key(), (id, key));
}

#[test]
fn http_1_and_2_tls_1_2_and_1_3_pem_and_p12_are_served() {
    needs!(Curl);
    let network = Network::start(2);
    let kinds: [fn(&Path, &Sae) -> Curl; 2] = [Curl::p12, |ca, sae| Curl::pem(ca, &sae.cert, &sae.key)];
    let url =
        |id: &str, peer: &str, call: &str| format!("{}/api/v1/keys/{peer}/{call}", network.sae(id).0.sae_url);
    for kind in kinds {
        for tls in ["1.2", "1.3"] {
            for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
                // Exactly this version of TLS; --verbose prints what was negotiated.
                let (least, exactly) = (format!("--tlsv{tls}"), ["--tls-max", tls]);
                let curl = |id: &str| {
                    kind(&network.ca(), network.sae(id).1).and(&[&least, http, "--verbose"]).and(&exactly)
                };
                let assert_as_asked = |answer: &CurlAnswer| {
                    assert_eq!(answer.version, version, "{answer:?}");
                    let agreed = format!("ssl connection using tlsv{tls} ");
                    assert!(answer.headers.contains(&agreed), "{answer:?}");
                    assert!(answer.headers.contains("cache-control: no-store"), "{answer:?}");
                };
                let made = curl("alice").get(&url("alice", "bob", "enc_keys"));
                assert_as_asked(&made);
                let (id, key) = made.key();
                let body = json!({"key_IDs": [{"key_ID": id}]}).to_string();
                let got = curl("bob").post(&url("bob", "alice", "dec_keys"), &body);
                assert_as_asked(&got);
                assert_eq!(got.key(), (id, key));
            }
        }
    }
    let old = network.curl("alice").and(&["--tls-max", "1.1"]).get(&url("alice", "bob", "enc_keys"));
    assert_eq!(old.status, 0, "TLS 1.1 is refused: {old:?}");
}
