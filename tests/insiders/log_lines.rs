//! Refused requests and refused connections in a loop, against the log.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::{RawClient, needs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::field::{Field, client_of};
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

/// A request that somebody repeats.
#[derive(Clone)]
struct Nuisance {
    client: RawClient,
    at: SocketAddr,
    path: String,
    /// Of a POST.
    body: Option<&'static str>,
}

/// Repeats it, 200 times on each connection.
async fn repeat(nuisance: Nuisance, count: Arc<AtomicUsize>) {
    let Nuisance { client, at, path, body } = nuisance;
    loop {
        let round = async {
            let mut h2 = client.h2(at).await?;
            for _ in 0..200 {
                let stream = match body {
                    Some(body) => h2.post(&path, body.as_bytes()).await?,
                    None => h2.get(&path).await?,
                };
                h2.answer(stream).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            std::io::Result::Ok(())
        };
        if round.await.is_err() {
            count.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Connections that are refused: what is no TLS.
async fn no_tls(client: RawClient, at: SocketAddr, count: Arc<AtomicUsize>) {
    loop {
        if let Ok(mut stream) = client.tcp(at).await {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
            let mut answer = [0; 64];
            let _ = timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// A batch that never was.
const VOID: &str =
    r#"{"batch_id": "00000000-0000-4000-8000-000000000000", "expires_at": "2020-01-01T00:00:00Z"}"#;
/// A set whose pools are not there.
const SET: &str = r#"{"id": "00000001-0000-4000-8000-000000000000", "words": 131072,
    "expires_at": "2020-01-01T00:00:00Z", "pools": [
        {"server": "pool-1", "id": "00000002-0000-4000-8000-000000000000"},
        {"server": "pool-2", "id": "00000003-0000-4000-8000-000000000000"},
        {"server": "pool-3", "id": "00000004-0000-4000-8000-000000000000"}]}"#;

/// Returns the number of refusals, and of lines in the logs of site-a and pool-1.
pub(crate) async fn refusals(length: Length) -> (Finding, usize, usize) {
    let field = Field::start();
    let foreign = field.foreign_authority();
    testkit::run_to_end(&["pki", "issue", "sae", "dave", "--dir", &foreign.display().to_string()]);
    let at = field.sae_listener(0);
    let (dave, site_b) = (field.client("dave"), field.client("site-b"));
    let mallory = field.issue("sae", "mallory");
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let lines = || {
        let pool_server = field.network.pools[0].as_ref().unwrap();
        [field.network.daemon(0), pool_server]
            .map(|daemon| daemon.log().lines().count())
            .iter()
            .sum::<usize>()
    };
    let before = lines();
    let honest = Honest::start(&field, Manner::Steady);
    let count = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    let mut nuisance = |client: &RawClient, at: SocketAddr, path: &str, body: Option<&'static str>| {
        let nuisance = Nuisance { client: client.clone(), at, path: path.to_owned(), body };
        attack.spawn(repeat(nuisance, Arc::clone(&count)));
    };
    // An SAE that is served, with requests of the wrong shape, and with keys that are not there.
    nuisance(&dave, at, "/api/v1/keys/bob/enc_keys?size=12", None);
    nuisance(&dave, at, "/api/v1/keys/bob/dec_keys?key_ID=00000000-0000-4000-8000-000000000000", None);
    nuisance(&dave, at, "/api/v1/keys/nobody/enc_keys", None);
    // An SAE that lives elsewhere, one that nobody listed, a KME, a stranger.
    nuisance(&field.client("carol"), at, "/api/v1/keys/bob/enc_keys", None);
    nuisance(&mallory, at, "/api/v1/keys/nobody/enc_keys", None);
    nuisance(&site_b, at, "/api/v1/keys/bob/enc_keys", None);
    nuisance(&client_of(&field.network.ca(), &foreign, "dave"), at, "/", None);
    // A KME at its peer and at a pool server.
    let (peer, pools) = (field.peer_listener(0), field.pool_listener(0));
    nuisance(&site_b, peer, "/peer/v1/batches", Some("{}"));
    nuisance(&site_b, peer, "/peer/v1/void", Some(VOID));
    nuisance(&site_b, peer, "/peer/v1/pool-sets", Some(SET));
    nuisance(&site_b, pools, "/pool/v1/pools", Some("{}"));
    nuisance(&site_b, pools, "/pool/v1/pools/00000000-0000-4000-8000-000000000000", None);
    for host in 2..10 {
        let from = IpAddr::from([127, 0, 0, host]);
        attack.spawn(no_tls(dave.clone().from_address(from), at, Arc::clone(&count)));
    }
    sleep(length.attack()).await;
    attack.shutdown().await;
    let during = honest.stop().await;
    let (refusals, lines) = (count.load(Ordering::Relaxed), lines() - before);
    let finding = Finding {
        attack: "SAEs, a KME and strangers are refused in a loop",
        outcome: format!("{lines} lines in the logs for {refusals} refusals"),
        quiet: Some(quiet),
        during: Some(during),
        ..Finding::default()
    };
    (finding, refusals, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_in_a_loop_do_not_fill_the_log() {
    needs!(Curl);
    let (finding, refusals, lines) = refusals(Length::Short).await;
    assert!(refusals > 1_000 && lines < 300, "{finding:?}");
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
