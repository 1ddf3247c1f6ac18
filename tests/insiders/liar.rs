//! Pool servers under the attacker's control: one that lies, and too few of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use kme::Random as _;
use mtls::identity::Kind;
use mtls::{ListenerLimits, ListenerTls, TlsFiles, TlsStore, Versions};
use serde_json::{Value, json};
use testkit::{Curl, eventually, needs, spiffe_rules};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Application, Honest, Manner};

/// A pool server that gives every reader other bytes, with the certificate of a real one.
pub(crate) struct Liar {
    stop: CancellationToken,
}

/// Words and readers of each pool.
type Pools = Arc<Mutex<HashMap<String, (usize, Vec<Value>)>>>;

impl Liar {
    /// Takes the place of a server of the field that does not run.
    pub(crate) async fn start(field: &Field, server: usize) -> Self {
        let router = Router::new()
            .route("/pool/v1/pools", post(create))
            .route("/pool/v1/pools/{id}", get(download).delete(async || StatusCode::NO_CONTENT))
            .route("/pool/v1/pools/{id}/reads", get(reads))
            .with_state(Pools::default());
        let pki = field.network.pki();
        let name = &field.network.pool(server).id;
        let files = TlsFiles {
            ca: field.network.ca(),
            cert: pki.join(format!("{name}.pem")),
            key: pki.join(format!("{name}.key")),
            crl: None,
        };
        let store = TlsStore::open(files).unwrap();
        let tls = ListenerTls::Mutual {
            store,
            rules: spiffe_rules(),
            accepts: &[Kind::Kme],
            versions: Versions::Latest,
        };
        let tcp = tokio::net::TcpListener::bind(field.pool_listener(server)).await.unwrap();
        let stop = CancellationToken::new();
        let limits = ListenerLimits::default();
        tokio::spawn(mtls::listener::serve("pool", tcp, tls, router, limits, stop.clone()));
        Self { stop }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn create(State(pools): State<Pools>, Json(asked): Json<Value>) -> (StatusCode, Json<Value>) {
    let words = usize::try_from(asked["words"].as_u64().unwrap()).unwrap();
    let readers = asked["readers"].as_array().unwrap().clone();
    let id = uuid::Uuid::new_v4().to_string();
    let ttl = time::Duration::seconds(asked["ttl"].as_i64().unwrap_or(600));
    let expires_at = (OffsetDateTime::now_utc() + ttl).format(&Rfc3339).unwrap();
    pools.lock().unwrap().insert(id.clone(), (words, readers));
    let made = json!({ "pool_id": id, "expires_at": expires_at, "entropy_source": "os" });
    (StatusCode::CREATED, Json(made))
}

async fn download(State(pools): State<Pools>, Path(id): Path<String>) -> Result<Vec<u8>, StatusCode> {
    let words = pools.lock().unwrap().get(&id).ok_or(StatusCode::NOT_FOUND)?.0;
    let mut bytes = vec![0; 8 * words];
    kme::OsRandom.fill(&mut bytes).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(bytes)
}

/// One download by each reader: nothing to be seen.
async fn reads(State(pools): State<Pools>, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    let readers = pools.lock().unwrap().get(&id).ok_or(StatusCode::NOT_FOUND)?.1.clone();
    let counts: Vec<Value> =
        readers.into_iter().map(|reader| json!({ "reader": reader, "started": 1, "completed": 1 })).collect();
    Ok(Json(json!({ "readers": counts })))
}

fn readiness(field: &Field, site: usize) -> String {
    Curl::nobody(&field.network.ca()).get(&format!("{}/readyz", field.network.site(site).admin_url)).body
}

/// What the liar did.
pub(crate) struct Lied {
    /// From the first request of alice to the first key that bob has too; `None`: it never came.
    pub(crate) first_key_after: Option<Duration>,
    /// What `/readyz` said at both sites.
    pub(crate) said: [String; 2],
}

/// One of four pool servers gives every reader other bytes.
pub(crate) async fn lying_server(length: Length) -> (Finding, Lied) {
    let mut field = Field::generate(4);
    for site in 0..2 {
        // Every set has a pool of the liar, and the others are enough.
        let all = "[pools]\npools_per_set = 4";
        if !field.configure_site_if_known(site, &format!("{all}\npools_min = 3")) {
            field.configure_site(site, all);
        }
    }
    for server in 1..4 {
        field.network.start_pool(server);
    }
    let _liar = Liar::start(&field, 0).await;
    field.network.start_sites();
    let patience = length.pick(Duration::from_secs(30), Duration::from_secs(90));
    let (mut alice, mut bob) =
        (Application::new(&field, "alice", Manner::Steady), Application::new(&field, "bob", Manner::Steady));
    let start = Instant::now();
    let mut lied = Lied { first_key_after: None, said: Default::default() };
    let mut refused = 0;
    while start.elapsed() < patience {
        if let Ok(made) = alice.ask("bob/enc_keys", None).await {
            let ask = json!({ "key_IDs": [{ "key_ID": made["keys"][0]["key_ID"] }] });
            let got = bob.ask("alice/dec_keys", Some(ask)).await;
            assert_eq!(got.as_ref().map(|got| &got["keys"][0]["key"]), Ok(&made["keys"][0]["key"]));
            lied.first_key_after = Some(start.elapsed());
            break;
        }
        refused += 1;
        sleep(Duration::from_millis(100)).await;
    }
    let during = Honest::served_in(&field, Manner::Steady, length.attack()).await;
    lied.said = [readiness(&field, 0), readiness(&field, 1)];
    let outcome = lied.first_key_after.map_or_else(
        || format!("no key in {} s", patience.as_secs()),
        |after| format!("keys flow after {:.1} s and {refused} refusals", after.as_secs_f32()),
    );
    let finding = Finding {
        attack: "One of four pool servers gives each reader other bytes",
        outcome,
        during: Some(during),
        ..Finding::default()
    };
    (finding, lied)
}

/// How alice's order is answered, and of how many pools her key is made.
fn order(field: &Field) -> (u16, String) {
    let body = json!({ "extension_optional": [{ "dqkd_source_grade": {} }] });
    let answer = field.network.enc_post("alice", "bob", &body);
    let pools = match answer.status {
        200 => answer.json()["keys"][0]["key_extension"]["dqkd_source_grade"]["pools"].to_string(),
        _ => answer.message(),
    };
    (answer.status, pools)
}

/// Of three pool servers the attacker has two, and keeps everybody from the third. Returns how a request is
/// answered then, and when the third is back.
pub(crate) fn two_of_three() -> (Finding, [(u16, String); 2]) {
    let mut field = Field::generate(3);
    field.network.start_pools(2);
    field.network.start_sites();
    let without = order(&field);
    field.network.start_pool(2);
    eventually("keys are made with all servers", || field.network.enc("alice", "bob", "").status == 200);
    let with = order(&field);
    let finding = Finding {
        attack: "Two of three pool servers are breached, packets to the third are dropped",
        outcome: match without.0 {
            200 => format!("keys of {} pools", without.1),
            status => format!("{status} {}", without.1),
        },
        ..Finding::default()
    };
    (finding, [without, with])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_tells_each_site_other_bytes_is_found_and_keys_flow_within_10_seconds() {
    needs!(Curl);
    let (finding, lied) = lying_server(Length::Short).await;
    assert!(lied.first_key_after.is_some_and(|after| after <= Duration::from_secs(10)), "{finding:?}");
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
    assert!(lied.said.iter().all(|said| said.contains("pool-1")), "{:?}", lied.said);
}

#[test]
fn keys_are_not_made_of_fewer_pools_than_the_site_demands() {
    needs!(Curl);
    let (finding, [without, with]) = two_of_three();
    assert!(without.0 == 503 && without.1.contains("pool-3"), "{finding:?}");
    assert_eq!(with, (200, "3".to_owned()), "{finding:?}");
}
