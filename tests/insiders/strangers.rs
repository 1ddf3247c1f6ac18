//! Connections without a handshake, from a stranger's address and from the victim's own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::{RawClient, needs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use std::time::Duration;

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

/// How a stranger begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Not a byte.
    Silent,
    /// The head of a TLS record, then a byte now and then.
    Trickle,
}

/// Keeps this many connections without a handshake, and replaces those that the server closes.
async fn hold(
    client: RawClient,
    at: SocketAddr,
    count: usize,
    start: Start,
    opened: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let mut all = JoinSet::new();
    for _ in 0..count {
        let (client, opened) = (client.clone(), Arc::clone(&opened));
        all.spawn(async move {
            loop {
                // Without a pause, the attack would be a flood of packets.
                sleep(Duration::from_secs(1)).await;
                let Ok(Ok(mut stream)) = timeout(Duration::from_secs(5), client.tcp(at)).await else {
                    continue;
                };
                opened.fetch_add(1, Ordering::Relaxed);
                if start == Start::Trickle && stream.write_all(&[22, 3, 1, 2, 0]).await.is_err() {
                    continue;
                }
                loop {
                    let mut answer = [0; 64];
                    match timeout(Duration::from_secs(1), stream.read(&mut answer)).await {
                        Ok(Ok(1..)) => {}
                        Ok(_) => break,
                        Err(_) if start == Start::Trickle && stream.write_all(&[1]).await.is_err() => break,
                        Err(_) => {}
                    }
                }
            }
        });
    }
    stop.cancelled().await;
}

/// Strangers at `from` against the SAE listener of site-a; alice opens a connection for every request.
pub(crate) async fn half_open(length: Length, from: &str, start: Start) -> Finding {
    let mut field = Field::generate(3);
    if length == Length::Short {
        field.configure_site(0, "[limits]\nmax_connections = 256");
    }
    field.start_all();
    let from: IpAddr = from.parse().unwrap();
    let client = field.client("carol").from_address(from);
    let quiet = Honest::served_in(&field, Manner::Fresh, length.quiet()).await;
    let before = field.network.daemon(0).memory_kib() / 1024;
    let (opened, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    // At the victim's own address, those who come compete with it for the same places.
    let count =
        if from.to_string() == "127.0.0.1" { length.pick(300, 2_200) } else { length.pick(600, 4_500) };
    let attack = hold(client, field.sae_listener(0), count, start, Arc::clone(&opened), stop.child_token());
    let attack = tokio::spawn(attack);
    sleep(Duration::from_secs(2)).await;
    let during = Honest::served_in(&field, Manner::Fresh, length.attack()).await;
    stop.cancel();
    attack.await.unwrap();
    let attack = match (from.to_string().as_str(), start) {
        ("127.0.0.1", Start::Silent) => {
            "Strangers at the victim's own address open connections and stay silent"
        }
        ("127.0.0.1", Start::Trickle) => "Strangers at the victim's own address send handshakes byte by byte",
        (_, Start::Silent) => "Strangers elsewhere open connections and stay silent",
        (_, Start::Trickle) => "Strangers elsewhere send handshakes byte by byte",
    };
    Finding {
        attack,
        outcome: format!("{} connections opened", opened.load(Ordering::Relaxed)),
        quiet: Some(quiet),
        during: Some(during),
        memory_mib: Some((before, field.network.daemon(0).peak_memory_kib() / 1024)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_handshake_take_no_place_from_applications() {
    needs!(Curl);
    let finding = half_open(Length::Short, "127.0.0.2", Start::Silent).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_from_the_address_of_the_application_itself() {
    needs!(Curl);
    let finding = half_open(Length::Short, "127.0.0.1", Start::Trickle).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
