//! One SAE that asks for as much work as it can.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use testkit::{RawClient, needs};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

const CONNECTIONS: usize = 4;
const STREAMS: usize = 50;

/// What it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greed {
    /// The largest keys, many at once.
    LargestKeys,
    /// As many keys as there are, from the reserve.
    ManyKeys,
    /// The same, and every request is reset at once.
    Resets,
    /// Keys that are not there.
    UnknownKeys,
}

async fn ask(
    client: RawClient,
    at: SocketAddr,
    greed: Greed,
    asked: Arc<AtomicUsize>,
    given: Arc<AtomicUsize>,
) {
    loop {
        let round = async {
            let mut h2 = client.h2(at).await?;
            loop {
                let mut streams = Vec::new();
                for number in 0..STREAMS {
                    let path = ["bob", "carol", "site-b"][number % 3];
                    let many = format!("/api/v1/keys/{path}/enc_keys?number=128");
                    let stream = match greed {
                        Greed::LargestKeys => {
                            let body = json!({ "number": 128, "size": 65_536 }).to_string();
                            h2.post(&format!("/api/v1/keys/{path}/enc_keys"), body.as_bytes()).await?
                        }
                        Greed::ManyKeys | Greed::Resets => h2.get(&many).await?,
                        Greed::UnknownKeys => {
                            let ids: Vec<_> = (0..128)
                                .map(|_| json!({ "key_ID": uuid::Uuid::new_v4().to_string() }))
                                .collect();
                            let body = json!({ "key_IDs": ids }).to_string();
                            h2.post(&format!("/api/v1/keys/{path}/dec_keys"), body.as_bytes()).await?
                        }
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    if greed == Greed::Resets {
                        h2.reset(stream).await?;
                        sleep(Duration::from_millis(1)).await;
                    } else {
                        streams.push(stream);
                    }
                }
                for stream in streams {
                    if h2.answer(stream).await.is_ok_and(|answer| answer.status == 200) {
                        given.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        let _: std::io::Result<()> = round.await;
        sleep(Duration::from_millis(20)).await;
    }
}

/// Dave asks at site-a for as much as he can.
pub(crate) async fn greedy(length: Length, greed: Greed) -> Finding {
    let field = Field::start();
    let (dave, at) = (field.client("dave"), field.sae_listener(0));
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let before = field.network.daemon(0).memory_kib() / 1024;
    let (asked, given) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut attack = JoinSet::new();
    for _ in 0..CONNECTIONS {
        attack.spawn(ask(dave.clone(), at, greed, Arc::clone(&asked), Arc::clone(&given)));
    }
    sleep(Duration::from_secs(1)).await;
    let during = Honest::served_in(&field, Manner::Steady, length.attack()).await;
    attack.shutdown().await;
    Finding {
        attack: match greed {
            Greed::LargestKeys => "An SAE asks for the largest keys, 200 requests at once",
            Greed::ManyKeys => "An SAE asks for 128 keys, 200 requests at once",
            Greed::Resets => "An SAE asks for 128 keys and resets each request at once",
            Greed::UnknownKeys => "An SAE asks for 128 keys that are not there, 200 requests at once",
        },
        outcome: format!(
            "{} of {} requests answered with keys",
            given.load(Ordering::Relaxed),
            asked.load(Ordering::Relaxed)
        ),
        quiet: Some(quiet),
        during: Some(during),
        memory_mib: Some((before, field.network.daemon(0).peak_memory_kib() / 1024)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_reset_at_once_take_no_place_from_another_sae() {
    needs!(Curl);
    let finding = greedy(Length::Short, Greed::Resets).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
