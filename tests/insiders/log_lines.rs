//! Refused requests and refused connections in a loop, against the log.

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

/// Requests that are refused, on one connection after the other.
async fn refused_requests(
    client: RawClient,
    at: std::net::SocketAddr,
    path: String,
    count: Arc<AtomicUsize>,
) {
    loop {
        let round = async {
            let mut h2 = client.h2(at).await?;
            for _ in 0..200 {
                let stream = h2.get(&path).await?;
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
async fn no_tls(client: RawClient, at: std::net::SocketAddr, count: Arc<AtomicUsize>) {
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

/// Returns the number of refusals and of lines in the log.
pub(crate) async fn refusals(length: Length) -> (Finding, usize, usize) {
    let field = Field::start();
    let foreign = field.foreign_authority();
    testkit::run_to_end(&["pki", "issue", "sae", "dave", "--dir", &foreign.display().to_string()]);
    let at = field.sae_listener(0);
    let dave = field.client("dave");
    let quiet = Honest::undisturbed(&field, Manner::Steady, length.quiet()).await;
    let lines = || field.network.daemon(0).log().lines().count();
    let before = lines();
    let honest = Honest::start(&field, Manner::Steady);
    let count = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    let mut requests = |client: &RawClient, path: &str| {
        attack.spawn(refused_requests(client.clone(), at, path.to_owned(), Arc::clone(&count)));
    };
    // An SAE that is served, with requests of the wrong shape, and with keys that are not there.
    requests(&dave, "/api/v1/keys/bob/enc_keys?size=12");
    requests(&dave, "/api/v1/keys/bob/dec_keys?key_ID=00000000-0000-4000-8000-000000000000");
    requests(&dave, "/api/v1/keys/nobody/enc_keys");
    // An SAE that lives elsewhere, one that nobody listed, a KME, a stranger.
    requests(&field.client("carol"), "/api/v1/keys/bob/enc_keys");
    requests(&field.issue("sae", "mallory"), "/api/v1/keys/nobody/enc_keys");
    requests(&field.client("site-b"), "/api/v1/keys/bob/enc_keys");
    requests(&client_of(&field.network.ca(), &foreign, "dave"), "/");
    for host in 2..10 {
        let from = std::net::IpAddr::from([127, 0, 0, host]);
        attack.spawn(no_tls(dave.clone().from_address(from), at, Arc::clone(&count)));
    }
    sleep(length.attack()).await;
    attack.shutdown().await;
    let during = honest.stop().await;
    let (refusals, lines) = (count.load(Ordering::Relaxed), lines() - before);
    let finding = Finding {
        attack: "SAEs and strangers are refused in a loop",
        outcome: format!("{lines} lines in the log for {refusals} refusals"),
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
    assert!(finding.during.as_ref().unwrap().is_whole(), "{finding:?}");
}
