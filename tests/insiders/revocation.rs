//! Clients whose right to a connection has ended, and who hold on to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testkit::{RawClient, RawH2, needs, raw_h2};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::field::Field;
use crate::finding::{Finding, Length};

const STATUS: &str = "/api/v1/keys/bob/status";
const ENC_KEYS: &str = "/api/v1/keys/bob/enc_keys";
const INFO: &str = "/peer/v1/info";
const POOLS: &str = "/pool/v1/pools";
const STEP: Duration = Duration::from_millis(300);

/// A connection is closed so soon after its right to exist has ended, whatever its client does.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);

/// How a client holds on.
#[derive(Clone, Copy, Debug)]
enum Grip {
    /// HTTP/2 without any acknowledgement, asking on.
    WithheldAcks,
    /// HTTP/2 with requests whose bodies arrive byte by byte.
    TricklingBodies,
    /// HTTP/1.1 with such a body.
    TricklingHttp1,
    /// HTTP/2 with all windows closed, so that answers stay unsent.
    ClosedWindows,
}

const GRIPS: [Grip; 4] =
    [Grip::WithheldAcks, Grip::TricklingBodies, Grip::TricklingHttp1, Grip::ClosedWindows];

/// What a client had of its connection, from the moment that its right to it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// `None`: it was still open when the test gave up.
    closed_after: Option<Duration>,
    /// `None`: nothing was answered any more.
    served_until: Option<Duration>,
}

/// A connection that holds on until it is closed.
struct Holder {
    name: String,
    grip: Grip,
    path: &'static str,
    post: &'static str,
    connection: Connection,
}

enum Connection {
    Two(RawH2),
    One(tokio_rustls::client::TlsStream<tokio::net::TcpStream>),
}

impl Holder {
    /// Connects and is served once.
    async fn connect(
        name: &str,
        client: &RawClient,
        at: SocketAddr,
        grip: Grip,
        path: &'static str,
        post: &'static str,
    ) -> Self {
        let connection = if matches!(grip, Grip::TricklingHttp1) {
            let mut stream = client.tls(at, "http/1.1").await.unwrap();
            let head = format!("POST {post} HTTP/1.1\r\nhost: {at}\r\ncontent-length: 200\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            Connection::One(stream)
        } else {
            let mut h2 = client.h2(at).await.unwrap();
            h2.withholds_acks = matches!(grip, Grip::WithheldAcks);
            let stream = h2.get(path).await.unwrap();
            let answer = timeout(Duration::from_secs(10), h2.answer(stream)).await;
            assert!(answer.is_ok_and(|answer| answer.is_ok()), "{name} is served at first");
            if matches!(grip, Grip::ClosedWindows) {
                h2.send(raw_h2::kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await.unwrap();
            }
            Connection::Two(h2)
        };
        Self { name: format!("{name} {grip:?}"), grip, path, post, connection }
    }

    /// Holds on from `ended` for at most `patience`.
    async fn hold(mut self, ended: Instant, patience: Duration) -> (String, Held) {
        let mut held = Held { closed_after: None, served_until: None };
        while ended.elapsed() < patience {
            let is_closed = match &mut self.connection {
                Connection::One(stream) => {
                    let _ = stream.write_all(b" ").await;
                    let mut answer = [0; 512];
                    matches!(timeout(STEP, stream.read(&mut answer)).await, Ok(Ok(0) | Err(_)))
                }
                Connection::Two(h2) => {
                    let (is_served, is_closed) = step(h2, self.grip, self.path, self.post).await;
                    held.served_until = is_served.then(|| ended.elapsed()).or(held.served_until);
                    is_closed
                }
            };
            if is_closed {
                held.closed_after = Some(ended.elapsed());
                break;
            }
            sleep(STEP).await;
        }
        (self.name, held)
    }
}

/// One request; whether it was served, and whether the connection is closed.
async fn step(h2: &mut RawH2, grip: Grip, path: &str, post: &str) -> (bool, bool) {
    if matches!(grip, Grip::TricklingBodies)
        && let Ok(stream) = h2.post_head(post, 200).await
    {
        let _ = h2.data(stream, b" ", false).await;
    }
    let Ok(stream) = h2.get(path).await else { return (false, true) };
    match timeout(STEP * 3, h2.answer(stream)).await {
        Ok(Ok(_)) => (true, false),
        Ok(Err(_)) => (false, timeout(STEP, h2.until_closed()).await.is_ok()),
        Err(_) => (false, false),
    }
}

async fn hold_all(holders: Vec<Holder>, ended: Instant, patience: Duration) -> Vec<(String, Held)> {
    let tasks: Vec<_> =
        holders.into_iter().map(|holder| tokio::spawn(holder.hold(ended, patience))).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

fn finding(attack: &'static str, all: &[(String, Held)], patience: Duration) -> Finding {
    let open = all.iter().filter(|(_, held)| held.closed_after.is_none()).count();
    let closed = all.iter().filter_map(|(_, held)| held.closed_after).max();
    let served = all.iter().filter_map(|(_, held)| held.served_until).max();
    let mut parts = vec![served.map_or_else(
        || "served nothing more".to_owned(),
        |served| format!("served for {:.1} s more", served.as_secs_f32()),
    )];
    parts.extend(
        closed.map(|closed| format!("{} closed within {:.1} s", all.len() - open, closed.as_secs_f32())),
    );
    if open > 0 {
        parts.push(format!("{open} of {} still open after {} s", all.len(), patience.as_secs()));
    }
    let outcome = parts.join(", ");
    Finding { attack, outcome, ..Finding::default() }
}

/// An SAE and a KME are revoked; they hold connections of all listeners.
pub(crate) async fn revoked(length: Length) -> (Finding, Vec<(String, Held)>) {
    let field = Field::start();
    let (dave, site_b) = (field.client("dave"), field.client("site-b"));
    let mut holders = Vec::new();
    for grip in GRIPS {
        let at = field.sae_listener(0);
        holders.push(Holder::connect("sae", &dave, at, grip, STATUS, ENC_KEYS).await);
        let at = field.peer_listener(0);
        holders.push(Holder::connect("peer", &site_b, at, grip, INFO, "/peer/v1/void").await);
        let at = field.pool_listener(0);
        holders.push(Holder::connect("pool", &site_b, at, grip, POOLS, POOLS).await);
    }
    field.pki(&["revoke", "sae", "dave"]);
    field.pki(&["revoke", "kme", "site-b"]);
    let ended = Instant::now();
    let patience = length.pick(CLOSED_WITHIN + Duration::from_secs(2), Duration::from_secs(70));
    let all = hold_all(holders, ended, patience).await;
    (finding("A revoked SAE and a revoked KME keep their connections", &all, patience), all)
}

/// An SAE's certificate expires while it holds connections.
pub(crate) async fn expired(length: Length) -> (Finding, Vec<(String, Held)>) {
    const VALID_SECS: u32 = 12;
    let mut field = Field::generate(3);
    field.list_sae("late", "site-a");
    field.start_all();
    let issued = Instant::now();
    let late = field.issue_for(VALID_SECS, "sae", "late");
    let mut holders = Vec::new();
    for grip in GRIPS {
        holders.push(Holder::connect("sae", &late, field.sae_listener(0), grip, STATUS, ENC_KEYS).await);
    }
    // Certificates count whole seconds.
    let expires = issued + Duration::from_secs(u64::from(VALID_SECS) + 1);
    sleep(expires.saturating_duration_since(Instant::now())).await;
    let patience = length.pick(CLOSED_WITHIN + Duration::from_secs(2), Duration::from_secs(70));
    let all = hold_all(holders, expires, patience).await;
    (finding("An SAE keeps connections past the expiry of its certificate", &all, patience), all)
}

fn assert_all_closed(all: &[(String, Held)]) {
    for (name, held) in all {
        assert!(held.closed_after.is_some_and(|after| after <= CLOSED_WITHIN), "{name}: {held:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_cut_off_within_15_seconds_whatever_it_withholds() {
    needs!(Curl);
    assert_all_closed(&revoked(Length::Short).await.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_ends_its_connections_within_15_seconds() {
    needs!(Curl, Faketime);
    assert_all_closed(&expired(Length::Short).await.1);
}
