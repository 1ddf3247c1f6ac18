//! Faults at run time: 503 with a message that names the fault, nothing handed out, nothing lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use rustix::process::Signal;
use serde_json::json;

use testkit::{Curl, Network, eventually};

use crate::stored::stored_keys;
use testkit::needs;

#[test]
fn a_dead_peer_is_named_in_a_503_and_service_goes_on_when_it_is_back() {
    needs!(Curl);
    let mut network = Network::generate(2);
    // Ready keys that were made before the peer died would be handed out.
    network.configure(0, "[store]", "[keys]\nmin_stored_per_pair = 0\n\n[store]");
    network.start_pools(3);
    network.start_sites();
    let delivered = network.enc("alice", "bob", "").key();
    network.kill_site(1);
    let refused = network.enc("alice", "bob", "");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.message(), "KME site-b does not answer");
    assert!(refused.headers.contains("retry-after: "), "{refused:?}");
    assert_eq!(network.status("alice", "bob")["stored_key_count"], 0);
    eventually("readyz notices", || network.part(0, "peer site-b") == "degraded");
    // Keys within the own site need no peer.
    let local = network.enc("alice", "dave", "").key();
    assert_eq!(network.dec("dave", "alice", &[&local.0]).key(), local);

    network.start_site(1);
    // What was delivered before the SIGKILL is still there.
    assert_eq!(network.dec("bob", "alice", &[&delivered.0]).key(), delivered);
    eventually("keys flow again", || network.enc("alice", "bob", "").status == 200);
    let fresh = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&fresh.0]).key(), fresh);
    eventually("readyz notices", || network.part(0, "peer site-b") == "ok");
}

#[test]
fn one_dead_site_of_three_refuses_the_multicast_and_leaves_no_twin_usable() {
    needs!(Curl);
    let mut network = Network::start(3);
    network.kill_site(2);
    let body = json!({"additional_slave_SAE_IDs": ["erin"], "number": 4});
    let refused = network.enc_post("alice", "bob", &body);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.message(), "KME site-c does not answer");
    // Every key of the order that site-b may have stored is void: nobody can retrieve it.
    eventually("site-b holds no key", || stored_keys(&network.database(1)) == 0);
    assert_eq!(stored_keys(&network.database(0)), 0);
    let pair = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&pair.0]).key(), pair);
}

#[test]
fn a_site_goes_on_with_the_pool_set_it_has_when_all_pool_servers_die() {
    needs!(Curl);
    let mut network = Network::start(2);
    eventually("a pool set is ready", || network.status("alice", "bob")["stored_key_count"] != 0);
    for index in 0..3 {
        network.kill_pool(index);
    }
    for _ in 0..3 {
        let key = network.enc("alice", "bob", "?number=10").keys();
        let ids: Vec<&str> = key.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(network.dec("bob", "alice", &ids).keys(), key);
    }
}

#[test]
fn a_recipient_that_lost_its_pools_gets_them_again_or_a_new_set() {
    needs!(Curl);
    let mut network = Network::start(2);
    network.enc("alice", "bob", "").key();
    // Site-b restarts with nothing in memory; the pool servers still have the pools.
    network.kill_site(1);
    network.start_site(1);
    eventually("keys flow again", || network.enc("alice", "bob", "").status == 200);
    // Now the pools are gone at the servers too.
    network.kill_site(1);
    for index in 0..3 {
        network.kill_pool(index);
        network.start_pool(index);
    }
    network.start_site(1);
    eventually("keys flow again", || network.enc("alice", "bob", "").status == 200);
    let key = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&key.0]).key(), key);
}

/// A file system of its own, as small as a full disk.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Needs a user who may mount, perhaps by `sudo` without a password.
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=1777", "tmpfs"];
        let is_done = as_root(&mount, at);
        assert!(
            is_done,
            "a full disk takes a small file system: run the tests as root, or with sudo at hand"
        );
        Self(at.to_owned())
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        as_root(&["umount", "-l"], &self.0);
    }
}

/// Runs a command on a path, with `sudo` if it fails without.
fn as_root(command: &[&str], at: &Path) -> bool {
    [&[][..], &["sudo", "-n"]].iter().any(|with| {
        let words: Vec<&str> = with.iter().chain(command).copied().collect();
        let [program, args @ ..] = words.as_slice() else { return false };
        Command::new(program).args(args).arg(at).output().is_ok_and(|output| output.status.success())
    })
}

#[test]
fn a_full_disk_at_either_site_is_a_503_that_says_so_and_leaves_no_twin() {
    needs!(Curl);
    for full in [0, 1] {
        let mut network = Network::generate(2);
        let disk = SmallDisk::mount(&network.dir().join("small"));
        let name = ["site-a", "site-b"][full];
        let url = format!("sqlite://{}", disk.0.join("site.db").display());
        network.configure(full, &format!("sqlite://{name}.db"), &url);
        network.start_pools(3);
        network.start_sites();
        let before = network.enc("alice", "bob", "").key();
        disk.fill();
        let mut refused = None;
        // The database's log still has some room.
        eventually("the disk is full", || {
            let answer = network.enc("alice", "bob", "?number=100");
            let is_refused = answer.status != 200;
            refused = Some(answer);
            is_refused
        });
        let refused = refused.unwrap();
        assert_eq!(refused.status, 503, "{refused:?}");
        let expected = [
            "the key store has no space left",
            "KME site-b cannot take keys now: the key store has no space left",
        ];
        assert_eq!(refused.message(), expected[full]);
        disk.free();
        eventually("keys flow again", || network.enc("alice", "bob", "").status == 200);
        assert_eq!(network.dec("bob", "alice", &[&before.0]).key(), before);
        if full == 0 {
            // Site-b has voided everything of the refused orders.
            let (here, there) = (disk.0.join("site.db"), network.database(1));
            eventually("site-b holds no more than site-a", || stored_keys(&there) <= stored_keys(&here));
        }
    }
}

#[test]
fn sigterm_finishes_and_closes_and_a_restart_has_every_key() {
    needs!(Curl);
    let mut network = Network::start(2);
    let keys = network.enc("alice", "bob", "?number=50").keys();
    let status = network.sites[1].take().unwrap().terminate();
    assert!(status.success(), "{status}");
    assert!(!network.site(1).config.with_extension("db-wal").exists(), "the log is merged on a clean stop");
    network.start_site(1);
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids).keys(), keys);
}

#[test]
fn a_retrieval_survives_a_sigkill_right_after_its_answer() {
    needs!(Curl);
    let mut network = Network::start(2);
    let (id, key) = network.enc("alice", "bob", "").key();
    assert_eq!(network.dec("bob", "alice", &[&id]).key().1, key);
    network.kill_site(1);
    network.start_site(1);
    assert_eq!(network.dec("bob", "alice", &[&id]).status, 400);
}

#[test]
fn expired_keys_are_not_returned_and_are_erased() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in [0, 1] {
        network.configure(site, "[store]", "[keys]\nttl = \"2s\"\nmin_stored_per_pair = 0\n\n[store]");
    }
    network.start_pools(3);
    network.start_sites();
    let (id, _) = network.enc("alice", "bob", "").key();
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(network.dec("bob", "alice", &[&id]).status, 400);
    for site in [0, 1] {
        eventually("the key is erased", || stored_keys(&network.database(site)) == 0);
    }
}

#[test]
fn new_certificates_directory_and_crl_take_effect_without_a_restart() {
    needs!(Curl);
    let network = Network::start(2);
    let bob = network.sae("bob").1.clone();
    network.enc("bob", "site-a", "").key();

    // A new SAE at site-b, listed at both.
    let pki = network.pki().display().to_string();
    testkit::run_to_end(&["pki", "issue", "sae", "zoe", "--dir", &pki]);
    assert_eq!(network.enc("alice", "zoe", "").status, 400);
    for site in [0, 1] {
        let config = &network.site(site).config;
        let text = std::fs::read_to_string(config).unwrap() + "\n[[sae]]\nid = \"zoe\"\nkme = \"site-b\"\n";
        std::fs::write(config, text).unwrap();
        network.daemon(site).signal(Signal::HUP);
    }
    eventually("zoe is known", || network.enc("alice", "zoe", "").status == 200);
    let (id, key) = network.enc("alice", "zoe", "").key();
    let path = |name: &str| network.pki().join(name);
    let zoe = Curl::pem(&network.ca(), &path("zoe.pem"), &path("zoe.key"));
    let url = format!("{}/api/v1/keys/alice/dec_keys?key_ID={id}", network.site(1).sae_url);
    assert_eq!(zoe.get(&url).key(), (id, key));

    // A revoked one is refused at its next handshake.
    testkit::run_to_end(&["pki", "revoke", "sae", "bob", "--dir", &pki]);
    network.daemon(1).signal(Signal::HUP);
    // A connection made just before the reload also ends without an answer; that is not the refusal.
    eventually("bob is refused, and the log says why", || {
        network.status_code("bob", "site-a") == 0
            && network.daemon(1).log().to_lowercase().contains("revoked")
    });
    let _ = bob;

    // An invalid directory is logged, and the old one stays in force.
    let config = &network.site(0).config;
    let text = std::fs::read_to_string(config).unwrap() + "\n[[sae]]\nid = \"zoe\"\nkme = \"nowhere\"\n";
    std::fs::write(config, text).unwrap();
    network.daemon(0).signal(Signal::HUP);
    eventually("it is complained about", || network.daemon(0).log().contains("nowhere"));
    assert_eq!(network.enc("alice", "zoe", "").status, 200);
}

#[test]
fn an_idle_site_with_a_pool_set_stays_under_64_mib() {
    needs!(Curl);
    let network = Network::start(2);
    network.enc("alice", "bob", "").key();
    // The debug build is larger than the release build; the figure of the release build is in the README.
    let kib = network.daemon(0).memory_kib();
    assert!(kib < 64 * 1024, "{kib} KiB");
}

#[test]
fn no_log_shows_a_key_a_seed_or_a_password() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in [0, 1] {
        network.configure(site, "[store]", "[log]\nlevel = \"trace\"\n\n[store]");
    }
    network.start_pools(3);
    network.start_sites();
    let (id, key) = network.enc("alice", "bob", "").key();
    network.dec("bob", "alice", &[&id]).key();
    network.dec("bob", "alice", &[&id]);
    let bytes = base64::engine::general_purpose::STANDARD.decode(&key).unwrap();
    let hex = hex::encode(&bytes);
    let list = format!("{bytes:?}");
    for site in [0, 1] {
        let log = network.daemon(site).log().to_lowercase();
        assert!(log.contains("debug") && log.contains("request served"), "the log is loud");
        assert!(!log.contains(&key.to_lowercase()), "base64");
        assert!(!log.contains(&hex), "hexadecimal");
        assert!(!log.contains(&list[1..list.len() - 1]), "a list of bytes");
        for word in ["mask_seed", "\"seed\"", "\"confirm\""] {
            assert!(!log.contains(word), "{word}: metadata in the log");
        }
    }
}
