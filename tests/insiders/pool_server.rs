//! One KME against a pool server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::raw_h2::setting;
use testkit::{RawClient, RawH2, needs};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::Service;

const POOLS: &str = "/pool/v1/pools";
const PATIENCE: Duration = Duration::from_secs(5);

/// What the KME does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Heads of requests whose bodies never come.
    Bodies,
    /// As many pools as it gets, for an hour.
    Pools,
    /// Downloads that it does not read.
    Downloads,
}

fn order(words: u32, reader: &str) -> Vec<u8> {
    json!({ "words": words, "readers": [reader], "ttl": 3_600 }).to_string().into_bytes()
}

async fn call(h2: &mut RawH2, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, String> {
    let exchange = async {
        let stream =
            if method == "POST" { h2.post(path, body).await } else { h2.head(method, path, &[], true).await };
        h2.answer(stream?).await
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) if matches!(answer.status, 200..300) => Ok(answer.body),
        Ok(Ok(answer)) => Err(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in 5 s".to_owned()),
    }
}

/// An honest KME makes a pool, downloads it and releases it, for as long as it is told.
async fn honest(client: RawClient, at: SocketAddr, lasts: Duration) -> Service {
    let mut service = Service::default();
    let mut open = None;
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        let start = Instant::now();
        let round = async {
            if open.is_none() {
                let new = timeout(PATIENCE, client.h2(at)).await.map_err(|_| "no connection in 5 s")?;
                open = Some(new.map_err(|error| error.to_string())?);
            }
            let h2 = open.as_mut().ok_or("no connection")?;
            let made = call(h2, "POST", POOLS, &order(16_384, "site-a")).await?;
            let made: Value = serde_json::from_slice(&made).map_err(|error| error.to_string())?;
            let path = format!("{POOLS}/{}", made["pool_id"].as_str().unwrap_or_default());
            let bytes = call(h2, "GET", &path, &[]).await?;
            assert_eq!(bytes.len(), 8 * 16_384);
            call(h2, "DELETE", &path, &[]).await.map(drop)
        };
        let result: Result<(), String> = round.await;
        if result.is_err() {
            open = None;
        }
        service.add(start.elapsed(), result);
        sleep(Duration::from_millis(200)).await;
    }
    service
}

async fn attacker(
    client: RawClient,
    at: SocketAddr,
    attack: Attack,
    had: &AtomicUsize,
) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let mut h2 = client.h2_with(at, &[(setting::INITIAL_WINDOW_SIZE, 0)]).await.map_err(io)?;
    match attack {
        Attack::Bodies => {
            for _ in 0..150 {
                let stream = h2.post_head(POOLS, 1_000).await.map_err(io)?;
                h2.data(stream, b"{", false).await.map_err(io)?;
                had.fetch_add(1, Ordering::Relaxed);
            }
        }
        Attack::Pools => loop {
            let body = order(16_384, "site-b");
            let stream = h2.post(POOLS, &body).await.map_err(io)?;
            h2.window_update(stream, 10_000).await.map_err(io)?;
            let answer = h2.answer(stream).await.map_err(io)?;
            if answer.status == 201 {
                had.fetch_add(1, Ordering::Relaxed);
            } else {
                sleep(Duration::from_millis(50)).await;
            }
        },
        Attack::Downloads => {
            let stream = h2.post(POOLS, &order(1 << 20, "site-b")).await.map_err(io)?;
            h2.window_update(stream, 10_000).await.map_err(io)?;
            let made = h2.answer(stream).await.map_err(io)?;
            let made: Value = serde_json::from_slice(&made.body).map_err(|error| error.to_string())?;
            let path = format!("{POOLS}/{}", made["pool_id"].as_str().ok_or("no pool")?);
            for _ in 0..200 {
                h2.get(&path).await.map_err(io)?;
                had.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    h2.until_closed().await;
    Ok(())
}

/// Site-b attacks pool-1, on ten connections that it opens again; site-a goes on using it.
pub(crate) async fn one_kme(length: Length, attack: Attack) -> Finding {
    let mut field = Field::generate(3);
    field.network.start_pools(1);
    let at = field.pool_listener(0);
    let (site_a, site_b) = (field.client("site-a"), field.client("site-b"));
    let quiet = honest(site_a.clone(), at, 2 * length.quiet()).await;
    let daemon = field.network.pools[0].as_ref().unwrap();
    let before = daemon.memory_kib() / 1024;
    let had = Arc::new(AtomicUsize::new(0));
    let mut attackers = JoinSet::new();
    for _ in 0..10 {
        let (site_b, had) = (site_b.clone(), Arc::clone(&had));
        attackers.spawn(async move {
            loop {
                let _ = attacker(site_b.clone(), at, attack, &had).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    sleep(Duration::from_secs(2)).await;
    let during = honest(site_a, at, 2 * length.attack()).await;
    let peak = daemon.peak_memory_kib() / 1024;
    attackers.shutdown().await;
    Finding {
        attack: match attack {
            Attack::Bodies => "A KME sends a pool server bodies without end",
            Attack::Pools => "A KME makes as many pools as it gets",
            Attack::Downloads => "A KME begins downloads and does not read them",
        },
        outcome: match attack {
            Attack::Bodies => format!("{} requests begun", had.load(Ordering::Relaxed)),
            Attack::Pools => format!("{} pools made", had.load(Ordering::Relaxed)),
            Attack::Downloads => format!("{} downloads asked for", had.load(Ordering::Relaxed)),
        },
        quiet: Some(quiet),
        during: Some(during),
        memory_mib: Some((before, peak)),
    }
}

async fn assert_harmless(attack: Attack) {
    let finding = one_kme(Length::Short, attack).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
    // The pools that it may have, and some for connections.
    let (before, peak) = finding.memory_mib.unwrap();
    assert!(peak < before + 200, "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_from_one_kme_take_no_place_at_a_pool_server() {
    needs!(Curl);
    assert_harmless(Attack::Bodies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_of_one_kme_leave_room_for_those_of_another() {
    needs!(Curl);
    assert_harmless(Attack::Pools).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_that_one_kme_does_not_read_keep_nobody_from_a_pool_server() {
    needs!(Curl);
    assert_harmless(Attack::Downloads).await;
}
