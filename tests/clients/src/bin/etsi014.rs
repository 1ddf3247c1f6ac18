//! The client `etsi014` of QOJena against a running demo: HTTP by reqwest over rustls.

use std::process::ExitCode;
use std::time::Duration;

use dqkd_clients::{Checks, Demo, KEYS_NOT_FOUND, NOBODYS_KEY, NOT_A_MULTIPLE, UNKNOWN_SLAVE, bits_of};
use etsi014::{ApiErrorKind, Endpoint, Etsi014Error, KeyId, KeyIdRequest, KeyRequest, KeyResponse};
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Blocking calls of every SAE.
struct Saes {
    demo: Demo,
    runtime: Runtime,
}

impl Saes {
    fn endpoint(&self, sae: &str) -> Endpoint {
        let (url, sae) = self.demo.sae(sae);
        let builder = Endpoint::builder(url).root_ca_file(&self.demo.ca).timeout(TIMEOUT);
        builder.identity_files(&sae.cert, &sae.key).build().unwrap()
    }

    fn enc(&self, request: &KeyRequest) -> Result<KeyResponse, Etsi014Error> {
        self.runtime.block_on(self.endpoint("alice").get_key("bob", request))
    }

    fn dec(&self, sae: &str, ids: &[&str]) -> Result<KeyResponse, Etsi014Error> {
        let ids = ids.iter().map(|id| KeyId { key_ID: (*id).to_owned() }).collect();
        self.runtime.block_on(self.endpoint(sae).get_key_with_id("alice", &KeyIdRequest::new(ids)))
    }

    /// Alice gets keys of this number and size, Bob the same.
    fn both_get(&self, request: &KeyRequest, number: usize, size: usize) {
        let made = self.enc(request).unwrap();
        assert_eq!(made.keys.len(), number);
        assert!(made.keys.iter().all(|key| bits_of(&key.key) == size));
        let got = self.dec("bob", &ids(&made)).unwrap();
        assert!(are_equal(&made, &got));
    }

    fn enc_refused(&self, request: &KeyRequest, kind: ApiErrorKind) -> String {
        refused(self.enc(request), 400, kind)
    }
}

fn ids(keys: &KeyResponse) -> Vec<&str> {
    keys.keys.iter().map(|key| key.key_ID.as_str()).collect()
}

fn are_equal(one: &KeyResponse, other: &KeyResponse) -> bool {
    one.keys.len() == other.keys.len()
        && one.keys.iter().zip(&other.keys).all(|(a, b)| a.key_ID == b.key_ID && a.key == b.key)
}

/// The message of an answer that the client takes for a refusal of this kind.
fn refused<T>(answer: Result<T, Etsi014Error>, status: u16, kind: ApiErrorKind) -> String {
    let error = answer.err().expect("the KME refuses");
    assert_eq!((error.status().map(|status| status.as_u16()), error.kind()), (Some(status), Some(kind)));
    error.api_error().expect("a refusal has an error body").message.clone()
}

fn keys_are_the_same(checks: &mut Checks, saes: &Saes) {
    checks.check("defaults (all members null) give one key of 256 bits, the same at both sites", || {
        saes.both_get(&KeyRequest::default(), 1, 256);
    });
    checks.check("three keys of 512 bits are the same at both sites", || {
        saes.both_get(&KeyRequest::new(Some(3), Some(512)), 3, 512);
    });
    checks.check("number alone and size alone", || {
        saes.both_get(&KeyRequest::new(Some(2), None), 2, 256);
        saes.both_get(&KeyRequest::new(None, Some(1024)), 1, 1024);
    });
    checks.check("multicast: slaves of two sites get the same key, the unnamed do not", || {
        let more = Some(vec!["carol".to_owned(), "erin".to_owned()]);
        let made = saes.enc(&KeyRequest { additional_slave_SAE_IDs: more, ..KeyRequest::default() }).unwrap();
        refused(saes.dec("dave", &ids(&made)), 401, ApiErrorKind::Unauthorized);
        for sae in ["bob", "carol", "erin"] {
            assert!(are_equal(&made, &saes.dec(sae, &ids(&made)).unwrap()), "{sae}");
        }
    });
}

fn refusals_are_recognised(checks: &mut Checks, saes: &Saes) {
    checks.check("a second retrieval is KeysNotFound with the standard's sentence", || {
        let made = saes.enc(&KeyRequest::default()).unwrap();
        saes.dec("bob", &ids(&made)).unwrap();
        assert_eq!(refused(saes.dec("bob", &ids(&made)), 400, ApiErrorKind::KeysNotFound), KEYS_NOT_FOUND);
    });
    checks.check("one unknown key of two is KeysNotFound and the other one stays", || {
        let made = saes.enc(&KeyRequest::default()).unwrap();
        let both = saes.dec("bob", &[ids(&made)[0], NOBODYS_KEY]);
        assert_eq!(refused(both, 400, ApiErrorKind::KeysNotFound), KEYS_NOT_FOUND);
        assert!(are_equal(&made, &saes.dec("bob", &ids(&made)).unwrap()));
    });
    checks.check("another slave's key is Unauthorized and stays", || {
        let made = saes.enc(&KeyRequest::default()).unwrap();
        refused(saes.dec("carol", &ids(&made)), 401, ApiErrorKind::Unauthorized);
        assert!(are_equal(&made, &saes.dec("bob", &ids(&made)).unwrap()));
    });
    checks.check("a size that is no multiple of 8 is SizeNotMultipleOf8", || {
        let request = KeyRequest::new(None, Some(257));
        assert_eq!(saes.enc_refused(&request, ApiErrorKind::SizeNotMultipleOf8), NOT_A_MULTIPLE);
    });
    checks.check("numbers and sizes beyond the limits of status are BadRequest", || {
        let status = saes.runtime.block_on(saes.endpoint("alice").status("bob")).unwrap();
        for (number, size) in [
            (0, status.key_size),
            (status.max_key_per_request + 1, status.key_size),
            (1, status.max_key_size + 8),
            (1, status.min_key_size - 8),
        ] {
            saes.enc_refused(&KeyRequest::new(Some(number), Some(size)), ApiErrorKind::BadRequest);
        }
    });
    checks.check("an unknown slave is BadRequest, also one whose ID the client has to escape", || {
        for slave in ["nobody", "no/body", "100%", "ÿ ?#"] {
            let asked = saes.runtime.block_on(saes.endpoint("alice").get_key(slave, &KeyRequest::default()));
            assert_eq!(refused(asked, 400, ApiErrorKind::BadRequest), UNKNOWN_SLAVE, "{slave}");
        }
    });
    checks.check("without a certificate there is no connection", || {
        let (url, _) = saes.demo.sae("alice");
        let nobody = Endpoint::builder(url).root_ca_file(&saes.demo.ca).timeout(TIMEOUT).build().unwrap();
        let error = saes.runtime.block_on(nobody.status("bob")).unwrap_err();
        assert!(matches!(error, Etsi014Error::Transport(_)), "{error}");
    });
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let saes = Saes { demo: Demo::of_arguments(), runtime };
    let mut checks = Checks::of("etsi014 0.4.1");
    checks.check("status has every member and names both sites", || {
        let status = saes.runtime.block_on(saes.endpoint("alice").status("bob")).unwrap();
        assert_eq!((&*status.source_KME_ID, &*status.target_KME_ID), ("site-a", "site-b"));
        assert_eq!((&*status.master_SAE_ID, &*status.slave_SAE_ID), ("alice", "bob"));
        assert_eq!(status.key_size, 256);
        assert!(status.stored_key_count <= status.max_key_count);
        assert!(status.max_SAE_ID_count >= 2);
    });
    keys_are_the_same(&mut checks, &saes);
    refusals_are_recognised(&mut checks, &saes);
    checks.end()
}
