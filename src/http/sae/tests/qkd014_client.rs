//! `qkd014::Client` against dqkd over real mutual TLS. Tests that do not need dqkd are in `crates/qkd014`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mtls::identity::Kind;
use mtls::{ListenerLimits, ListenerTls, Versions, listener};
use pki::Role;
use qkd014::{Client, ClientError, KeyRequest};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::delivery::testing::{TestSites, rules};
use crate::http::RequestMeters;
use crate::http::limits::Clients;
use crate::http::middleware::EdgeLimits;

const PATIENCE: Duration = Duration::from_secs(20);

/// The KME of site-a, and what it delivers.
struct SiteA {
    sites: TestSites,
    url: String,
    _stop: DropGuard,
}

impl SiteA {
    async fn start() -> Self {
        let sites = TestSites::new(rules()).await;
        let limits = EdgeLimits { max_concurrent: 10, timeout: PATIENCE };
        let delivery = Arc::clone(&sites.a.delivery);
        let api = crate::http::sae::api(
            delivery,
            Clients::unlimited("sae"),
            limits,
            TaskTracker::new(),
            &RequestMeters::default(),
        );
        let tcp = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", tcp.local_addr().unwrap());
        let tls = ListenerTls::Mutual {
            store: testkit::shared().tls(Role::Kme, "site-a"),
            rules: testkit::spiffe_rules(),
            accepts: &[Kind::Sae],
            versions: Versions::Compatible,
        };
        let (stop, limits) = (CancellationToken::new(), ListenerLimits::default());
        tokio::spawn(listener::serve("sae", tcp, tls, api, limits, stop.clone()));
        Self { sites, url, _stop: stop.drop_guard() }
    }

    fn client(&self, sae: &str) -> Client {
        Client::new(&self.url, testkit::shared().tls(Role::Sae, sae)).unwrap().with_timeout(PATIENCE)
    }
}

fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status.as_u16(), message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn status_fresh_keys_and_keys_by_id_come_through() {
    let site = SiteA::start().await;
    let source = &site.sites.a.source;
    source.set_deliverable(7);
    let (alice, dave) = (site.client("alice"), site.client("dave"));
    let status = alice.status("b/o b%é").await.unwrap();
    assert_eq!((status.slave_sae_id.as_str(), status.stored_key_count), ("b/o b%é", 7));
    assert_eq!((status.master_sae_id.as_str(), status.source_kme_id.as_str()), ("alice", "site-a"));

    let request =
        KeyRequest { number: Some(2), size: Some(512), additional_slaves: vec!["carol".to_owned()] };
    let made = alice.enc_keys("dave", &request).await.unwrap().keys;
    assert_eq!(made.iter().map(|key| key.key.len()).collect::<Vec<_>>(), [64, 64]);
    assert_eq!(source.orders()[0].recipients.len(), 2);
    let ids: Vec<&str> = made.iter().map(|key| key.id.as_str()).collect();
    let got = dave.dec_keys("alice", &ids).await.unwrap().keys;
    for (mine, yours) in made.iter().zip(&got) {
        assert!(mine.id == yours.id && mine.key.ct_eq(&yours.key));
    }
    let one = alice.enc_keys("site-b", &KeyRequest::default()).await.unwrap().keys;
    assert_eq!((one.len(), one[0].key.len()), (1, 32), "defaults are the KME's");
}

#[tokio::test]
async fn a_refusal_carries_the_status_and_the_message_of_the_kme() {
    let site = SiteA::start().await;
    let alice = site.client("alice");
    let request = KeyRequest { size: Some(257), ..KeyRequest::default() };
    let refused = refusal(alice.enc_keys("bob", &request).await);
    assert_eq!(refused, (400, "size shall be a multiple of 8".to_owned()));
    let refused = refusal(alice.dec_keys("bob", &["00000000-0000-4000-8000-000000000000"]).await);
    assert_eq!(refused, (400, super::NOT_FOUND.to_owned()));
    // bob lives at site-b.
    let refused = refusal(site.client("bob").status("alice").await);
    assert_eq!(refused, (401, "Unauthorized".to_owned()));
}
