//! Certificates that have no business at a listener, in great number.

use std::net::SocketAddr;
use std::time::Duration;

use testkit::{RawClient, RawH2, needs};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::Service;

const AT_ONCE: usize = 64;

/// Opens this many HTTP/2 connections, asks on each, and returns those that the server has not closed a while
/// later.
pub(crate) async fn open_many(client: &RawClient, at: SocketAddr, count: usize) -> Vec<RawH2> {
    let mut open = JoinSet::new();
    let mut all = Vec::new();
    for _ in 0..count {
        if open.len() == AT_ONCE {
            all.extend(open.join_next().await.unwrap().unwrap());
        }
        let client = client.clone();
        open.spawn(async move {
            let mut connection = timeout(Duration::from_secs(5), client.h2(at)).await.ok()?.ok()?;
            connection.get("/").await.ok()?;
            Some(connection)
        });
    }
    while let Some(connection) = open.join_next().await {
        all.extend(connection.unwrap());
    }
    still_open(all).await
}

/// Those that the server has not closed within a second.
pub(crate) async fn still_open(all: Vec<RawH2>) -> Vec<RawH2> {
    let mut checks = JoinSet::new();
    for mut connection in all {
        checks.spawn(async move {
            let is_closed = timeout(Duration::from_secs(1), connection.until_closed()).await.is_ok();
            (!is_closed).then_some(connection)
        });
    }
    checks.join_all().await.into_iter().flatten().collect()
}

/// A client that opens a connection, asks once, and goes; several times.
pub(crate) async fn ask_afresh(client: &RawClient, at: SocketAddr, path: &str, times: usize) -> Service {
    let mut service = Service::default();
    for _ in 0..times {
        let start = std::time::Instant::now();
        let exchange = async {
            let mut h2 = client.h2(at).await?;
            let stream = h2.get(path).await?;
            h2.answer(stream).await
        };
        let result = match timeout(Duration::from_secs(5), exchange).await {
            Ok(Ok(answer)) if matches!(answer.status, 401 | 403 | 503) => Err(answer.status.to_string()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in 5 s".to_owned()),
        };
        service.add(start.elapsed(), result);
        sleep(Duration::from_millis(100)).await;
    }
    service
}

/// An SAE fills the listeners of peers and of a pool server with connections.
pub(crate) async fn sae_at_listeners_of_kmes(length: Length) -> (Vec<Finding>, usize) {
    let (most, count) = length.pick((256, 300), (1024, 1_100));
    let mut field = Field::generate(3);
    let limits = format!("[limits]\nmax_connections = {most}");
    field.configure_site(0, &limits);
    field.configure_pool(0, &limits);
    field.start_all();
    let (dave, site_b) = (field.client("dave"), field.client("site-b"));
    let places = [
        ("An SAE holds connections of a pool server", field.pool_listener(0), "/pool/v1/pools/x"),
        ("An SAE holds connections of a peer listener", field.peer_listener(0), "/peer/v1/info"),
    ];
    let (mut findings, mut held_in_all) = (Vec::new(), 0);
    for (attack, at, path) in places {
        let quiet = ask_afresh(&site_b, at, path, 5).await;
        let held = open_many(&dave, at, count).await;
        let during = ask_afresh(&site_b, at, path, length.pick(3, 8)).await;
        held_in_all += held.len();
        let outcome = format!("holds {} of {most} places", held.len());
        findings.push(Finding {
            attack,
            outcome,
            quiet: Some(quiet),
            during: Some(during),
            ..Finding::default()
        });
    }
    (findings, held_in_all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_wrong_kind_holds_no_connection() {
    needs!(Curl);
    let (findings, held) = sae_at_listeners_of_kmes(Length::Short).await;
    assert_eq!(held, 0, "{findings:?}");
    for finding in findings {
        assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
    }
}
