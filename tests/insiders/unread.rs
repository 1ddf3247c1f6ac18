//! Answers that their client does not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::raw_h2::setting;
use testkit::{RawClient, needs};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::field::Field;
use crate::finding::{Finding, Length};
use crate::honest::{Honest, Manner};

/// So few that all first requests together find places of work.
const CONNECTIONS: usize = 20;
/// What a server must take on a new connection (RFC 9113, section 6.9.2), less a little.
const BODIES_MAX: usize = 60_000;

/// How a client leaves its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neglect {
    /// HTTP/2 with windows of zero.
    ClosedWindows,
    /// HTTP/2 with open windows, and nothing is read from the socket.
    DeafSocket,
    /// HTTP/1.1 with all requests at once, and nothing is read.
    Http1,
    /// HTTP/2 with a window of one byte a second.
    OneByteASecond,
}

/// The last takes a minute to show what it is.
const ALL: [Neglect; 4] =
    [Neglect::ClosedWindows, Neglect::DeafSocket, Neglect::Http1, Neglect::OneByteASecond];

/// Asks and does not read, until the connection is closed.
async fn neglect(
    client: RawClient,
    at: SocketAddr,
    path: &str,
    body: &str,
    how: Neglect,
) -> std::io::Result<()> {
    let client = client.receive_buffer(4096);
    if how == Neglect::Http1 {
        let mut stream = client.tls(at, "http/1.1").await?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {at}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        loop {
            stream.write_all(request.as_bytes()).await?;
        }
    }
    let window = match how {
        Neglect::ClosedWindows | Neglect::OneByteASecond => 0,
        _ => (1 << 31) - 1,
    };
    let mut h2 = client.h2_with(at, &[(setting::INITIAL_WINDOW_SIZE, window)]).await?;
    if window > 0 {
        h2.window_update(0, (1 << 30) - 1).await?;
    }
    let mut streams = Vec::new();
    for _ in 0..BODIES_MAX / body.len() {
        streams.push(h2.post(path, body.as_bytes()).await?);
    }
    loop {
        if how == Neglect::DeafSocket {
            sleep(Duration::from_secs(1)).await;
            // Fails when the server has closed.
            h2.ping().await?;
            continue;
        }
        let until = Instant::now() + Duration::from_secs(1);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if let Ok(frame) = timeout(left, h2.next()).await {
                frame?;
            }
        }
        if how == Neglect::OneByteASecond {
            h2.window_update(streams[0], 1).await?;
        }
    }
}

/// Carol makes large answers wait for her at site-b: keys that she may retrieve again and again.
/// Returns how many of her connections were open at the end, without new ones in between.
pub(crate) async fn unread_answers(length: Length) -> (Finding, usize) {
    let mut field = Field::generate(3);
    // The same keys again and again: large answers at no cost.
    for site in 0..2 {
        field.configure_site(site, "[retrieval]\nmode = \"until-expiry\"");
    }
    field.start_all();
    let order = json!({ "number": 2, "size": 65_536 });
    let made = (0..16).flat_map(|_| field.network.enc_post("alice", "carol", &order).keys());
    let ids: Vec<Value> = made.map(|(id, _)| json!({ "key_ID": id })).collect();
    let body = json!({ "key_IDs": ids }).to_string();
    let quiet = Honest::served_in(&field, Manner::Steady, length.quiet()).await;
    let before = field.network.daemon(1).memory_kib() / 1024;
    let honest = Honest::start(&field, Manner::Steady);
    let (carol, at) = (field.client("carol"), field.sae_listener(1));
    let closed = Arc::new(AtomicUsize::new(0));
    let mut attack = JoinSet::new();
    let ways = &ALL[..length.pick(3, 4)];
    for number in 0..CONNECTIONS {
        let (carol, body, closed) = (carol.clone(), body.clone(), Arc::clone(&closed));
        let way = ways[number % ways.len()];
        attack.spawn(async move {
            let path = "/api/v1/keys/alice/dec_keys";
            let _ = neglect(carol, at, path, &body, way).await;
            closed.fetch_add(1, Ordering::Relaxed);
        });
    }
    let patience = length.pick(Duration::from_secs(25), Duration::from_secs(75));
    let start = Instant::now();
    while closed.load(Ordering::Relaxed) < CONNECTIONS && start.elapsed() < patience {
        sleep(Duration::from_millis(200)).await;
    }
    let open = CONNECTIONS - closed.load(Ordering::Relaxed);
    let seconds = start.elapsed().as_secs();
    let during = honest.stop().await;
    attack.shutdown().await;
    let finding = Finding {
        attack: "An SAE does not read some hundred large answers on 20 connections",
        outcome: format!("{open} of {CONNECTIONS} connections open after {seconds} s"),
        quiet: Some(quiet),
        during: Some(during),
        memory_mib: Some((before, field.network.daemon(1).peak_memory_kib() / 1024)),
    };
    (finding, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_bounded_memory_and_end_their_connections() {
    needs!(Curl);
    let (finding, open) = unread_answers(Length::Short).await;
    let (before, peak) = finding.memory_mib.unwrap();
    assert_eq!(open, 0, "{finding:?}");
    // 64 MiB of unsent answers, those that are made at once, and what goes with them. Without a bound there are 250.
    assert!(peak < before + 170, "{finding:?}");
    assert!(finding.during.as_ref().unwrap().goes_on(), "{finding:?}");
}
