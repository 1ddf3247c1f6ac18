//! The client `etsi014-client` of TU/e against a running demo: HTTP by reqwest over OpenSSL.

use std::process::ExitCode;

use dqkd_clients::{Checks, Demo, KEYS_NOT_FOUND, NOBODYS_KEY, NOT_A_MULTIPLE, UNKNOWN_SLAVE};
use etsi014_client::{ETSI014Client, Error, SecretVec};
use tokio::runtime::Runtime;

type Keys = Vec<(String, SecretVec<u8>)>;

/// Blocking calls of every SAE.
struct Saes {
    demo: Demo,
    runtime: Runtime,
}

impl Saes {
    fn client(&self, id: &str) -> ETSI014Client {
        let (url, sae) = self.demo.sae(id);
        let (host, port) = url.strip_prefix("https://").unwrap().split_once(':').unwrap();
        ETSI014Client::new(host, port.parse().unwrap(), &sae.cert, &sae.key, &self.demo.ca).unwrap()
    }

    fn enc(&self, size: u32, slave: &str, more: &[&str], number: u32) -> Result<Keys, Error> {
        self.runtime.block_on(self.client("alice").get_keys(size, slave, more, number))
    }

    fn dec(&self, sae: &str, ids: &[&str]) -> Result<Keys, Error> {
        self.runtime.block_on(self.client(sae).get_keys_by_ids("alice", ids))
    }

    /// Alice gets keys of this number and size, Bob the same.
    fn both_get(&self, number: u32, size: u32) {
        let made = self.enc(size, "bob", &[], number).unwrap();
        assert_eq!(made.len(), number as usize);
        assert!(made.iter().all(|(_, key)| key.len() * 8 == size as usize));
        assert!(are_equal(&made, &self.dec("bob", &ids(&made)).unwrap()));
    }
}

fn ids(keys: &Keys) -> Vec<&str> {
    keys.iter().map(|(id, _)| id.as_str()).collect()
}

fn are_equal(one: &Keys, other: &Keys) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
}

/// The client has one error type for every answer that is no success; its text has status and body.
fn assert_refused<T>(answer: Result<T, Error>, status: &str, message: &str) {
    let error = answer.err().expect("the KME refuses");
    assert_eq!(format!("{:?}", error.kind), "InvalidResponse");
    assert!(error.msg.contains(&format!("HTTP Code: {status}\n")), "{error}");
    assert!(error.msg.contains(&format!("{{\"message\":\"{message}\"")), "{error}");
}

fn keys_are_the_same(checks: &mut Checks, saes: &Saes) {
    checks.check("one key of 256 bits is the same at both sites", || saes.both_get(1, 256));
    checks.check("three keys of 512 bits are the same at both sites", || saes.both_get(3, 512));
    checks.check("keys of 8 bits and of 65,536 bits", || {
        saes.both_get(2, 8);
        saes.both_get(1, 65_536);
    });
    checks.check(
        "its multicast is none (its defect: the member is misnamed): only the path's slave has the key",
        || {
            let made = saes.enc(256, "bob", &["carol", "erin"], 1).unwrap();
            for sae in ["carol", "erin"] {
                let asked = saes.dec(sae, &ids(&made));
                // Erin's site took no part, so that it does not know the key at all.
                let (status, message) = match sae {
                    "carol" => ("401 Unauthorized", "Unauthorized"),
                    _ => ("400 Bad Request", KEYS_NOT_FOUND),
                };
                assert_refused(asked, status, message);
            }
            assert!(are_equal(&made, &saes.dec("bob", &ids(&made)).unwrap()));
        },
    );
}

fn refusals_are_told(checks: &mut Checks, saes: &Saes) {
    checks.check("a second retrieval shows the standard's sentence", || {
        let made = saes.enc(256, "bob", &[], 1).unwrap();
        saes.dec("bob", &ids(&made)).unwrap();
        assert_refused(saes.dec("bob", &ids(&made)), "400 Bad Request", KEYS_NOT_FOUND);
    });
    checks.check("one unknown key of two is refused and the other one stays", || {
        let made = saes.enc(256, "bob", &[], 1).unwrap();
        assert_refused(saes.dec("bob", &[ids(&made)[0], NOBODYS_KEY]), "400 Bad Request", KEYS_NOT_FOUND);
        assert!(are_equal(&made, &saes.dec("bob", &ids(&made)).unwrap()));
    });
    checks.check("a size that is no multiple of 8 shows the standard's sentence", || {
        assert_refused(saes.enc(257, "bob", &[], 1), "400 Bad Request", NOT_A_MULTIPLE);
    });
    checks.check("number 0 is refused", || {
        assert!(saes.enc(256, "bob", &[], 0).unwrap_err().msg.contains("HTTP Code: 400 Bad Request\n"));
    });
    checks.check("an unknown slave is refused, also one with a % that the client does not escape", || {
        for slave in ["nobody", "100%"] {
            assert_refused(saes.enc(256, slave, &[], 1), "400 Bad Request", UNKNOWN_SLAVE);
        }
    });
    checks.check("an ID with a slash (its defect: not escaped) is another path: 404 with JSON", || {
        assert_refused(saes.enc(256, "no/body", &[], 1), "404 Not Found", "no such path");
    });
    checks.check("a KME of another authority is not talked to", || {
        let (url, alice) = saes.demo.sae("alice");
        let (host, port) = url.strip_prefix("https://").unwrap().split_once(':').unwrap();
        // A certificate that is no authority's.
        let client = ETSI014Client::new(host, port.parse().unwrap(), &alice.cert, &alice.key, &alice.cert);
        let error = saes.runtime.block_on(client.unwrap().get_status("bob")).unwrap_err();
        assert_eq!(format!("{:?}", error.kind), "ConnectionError");
    });
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let saes = Saes { demo: Demo::of_arguments(), runtime };
    let mut checks = Checks::of("etsi014-client 0.2.0");
    checks.check("status has every member and names both sites", || {
        let status = saes.runtime.block_on(saes.client("alice").get_status("bob")).unwrap();
        assert_eq!((&*status.source_kme_id, &*status.target_kme_id), ("site-a", "site-b"));
        assert_eq!((&*status.source_sae_id, &*status.target_sae_id), ("alice", "bob"));
        assert_eq!((status.key_size, status.max_key_per_request), (256, 128));
        assert!(status.stored_key_count <= status.max_key_count);
    });
    keys_are_the_same(&mut checks, &saes);
    refusals_are_told(&mut checks, &saes);
    checks.end()
}
