//! One SAE against the places of work of its site.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::raw_h2::{flag, kind};
use testkit::{RawClient, RawH2, needs};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

const ENC_KEYS: &str = "/api/v1/keys/carol/enc_keys";
const STREAMS: usize = 250;

/// Heads of POSTs without bodies, on ten connections; whenever one is refused, another follows.
async fn heads(mut h2: RawH2, path: &str, sent: &AtomicUsize, trickles: bool) -> std::io::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(h2.post_head(path, 100).await?);
        sent.fetch_add(1, Ordering::Relaxed);
    }
    loop {
        let Ok(frame) = timeout(Duration::from_millis(500), h2.next()).await else {
            for stream in streams.iter().filter(|_| trickles) {
                h2.data(*stream, b" ", false).await?;
            }
            continue;
        };
        let frame = frame?;
        let ends = frame.kind == kind::RST_STREAM
            || (matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.flags & flag::END_STREAM != 0);
        if ends && let Some(place) = streams.iter().position(|stream| *stream == frame.stream) {
            h2.reset(frame.stream).await?;
            streams[place] = h2.post_head(path, 100).await?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The same over HTTP/1.1: a connection for each request.
async fn heads_of_http1(client: RawClient, at: SocketAddr, sent: Arc<AtomicUsize>) {
    loop {
        let Ok(mut stream) = client.tls(at, "http/1.1").await else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        let head = format!("POST {ENC_KEYS} HTTP/1.1\r\nhost: {at}\r\ncontent-length: 1000\r\n\r\n");
        sent.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Dave sends heads of requests whose bodies never come, or come byte by byte.
pub(crate) async fn unfinished_requests(length: Length, trickles: bool) -> Finding {
    let field = Field::start();
    let dave = field.client("dave");
    let at = field.sae_listener(0);
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let before = field.network.daemon(0).memory_kib() / 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    for _ in 0..10 {
        let (dave, sent) = (dave.clone(), Arc::clone(&sent));
        attack.spawn(async move {
            loop {
                if let Ok(h2) = dave.h2(at).await {
                    let _ = heads(h2, ENC_KEYS, &sent, trickles).await;
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
    }
    for _ in 0..if trickles { 200 } else { 0 } {
        attack.spawn(heads_of_http1(dave.clone(), at, Arc::clone(&sent)));
    }
    sleep(Duration::from_secs(1)).await;
    let during = Honest::served_in(&field, Manner::Steady, length.attack()).await;
    attack.shutdown().await;
    Finding {
        attack: if trickles {
            "An SAE sends requests whose bodies come byte by byte, over HTTP/2 and HTTP/1.1"
        } else {
            "An SAE sends 2,500 heads of requests without bodies, again and again"
        },
        outcome: format!("{} heads sent", sent.load(Ordering::Relaxed)),
        quiet: Some(quiet),
        during: Some(during),
        memory_mib: Some((before, field.network.daemon(0).peak_memory_kib() / 1024)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_bodies_take_no_place_from_another_sae() {
    needs!(Curl);
    let finding = unfinished_requests(Length::Short, false).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_come_byte_by_byte_take_no_place_from_another_sae() {
    needs!(Curl);
    let finding = unfinished_requests(Length::Short, true).await;
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
