//! Clients with good certificates, or with none, that try to hold what others need: connections past their
//! end, places, handshakes, memory.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, post};
use http_body_util::BodyExt as _;
use mtls::identity::Kind;
use mtls::*;
use pki::Role;
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, KeyPair, SanType};
use testkit::raw_h2::{RawClient, RawH2, setting};
use testkit::{TestAuthority, shared, spiffe_rules};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(300);
const KIB: usize = 1024;

struct TestServer {
    address: SocketAddr,
    counts: Arc<ListenerCounts>,
    /// Requests that began.
    begun: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl TestServer {
    async fn start(tls: Arc<TlsStore>, accepts: &'static [Kind], limits: ListenerLimits) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (stop, counts, begun) = (CancellationToken::new(), Arc::default(), Arc::default());
        let (rules, versions) = (spiffe_rules(), Versions::Latest);
        let tls = ListenerTls::Mutual { store: tls, rules, accepts, versions };
        let (router, ended) = (router(Arc::clone(&begun)), stop.clone());
        tokio::spawn(listener::serve_counted("test", tcp, tls, router, limits, ended, Arc::clone(&counts)));
        Self { address, counts, begun, stop }
    }

    async fn with(limits: ListenerLimits) -> Self {
        Self::start(shared().tls(Role::Kme, "site-a"), Kind::ALL, limits).await
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

/// `/zeros/N` answers N zero bytes; `/sink` reads its body to the end.
fn router(begun: Arc<AtomicUsize>) -> Router {
    let zeros = async move |Path(length): Path<usize>| {
        begun.fetch_add(1, Ordering::SeqCst);
        vec![0_u8; length]
    };
    let sink = async |body: Body| {
        let _ = body.collect().await;
    };
    Router::new().route("/zeros/{length}", get(zeros)).route("/sink", post(sink))
}

fn raw(authority: &TestAuthority, role: Role, id: &str) -> RawClient {
    let files = authority.files(role, id);
    RawClient::new(&files.ca, &files.cert, &files.key)
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

async fn answered(h2: &mut RawH2, length: usize) {
    let stream = h2.get(&format!("/zeros/{length}")).await.unwrap();
    let answer = timeout(PATIENCE, h2.answer(stream)).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, length));
}

/// Does what can keep a connection: withholds acknowledgements, leaves a request open and feeds it, and asks
/// for more. Returns when the server has closed.
async fn cling(mut h2: RawH2) {
    h2.withholds_acks = true;
    let open = h2.post_head("/sink", 1 << 20).await.unwrap();
    let clinging = async {
        loop {
            if h2.data(open, b"x", false).await.is_err() || h2.get("/zeros/1").await.is_err() {
                return;
            }
            // Not so fast that the server takes it for a flood.
            let until = tokio::time::Instant::now() + Duration::from_millis(20);
            while let Ok(frame) = timeout_at(until, h2.next()).await {
                if frame.is_err() {
                    return;
                }
            }
        }
    };
    timeout(PATIENCE, clinging).await.expect("the connection was kept");
}

#[tokio::test]
async fn a_revoked_client_loses_its_connection_whatever_it_withholds_and_others_keep_theirs() {
    let authority = TestAuthority::new();
    let tls = authority.tls(Role::Kme, "site-a");
    let server = TestServer::start(tls.clone(), Kind::ALL, ListenerLimits::default()).await;
    let mut alice = raw(&authority, Role::Sae, "alice").h2(server.address).await.unwrap();
    let mut mallory = raw(&authority, Role::Kme, "mallory").h2(server.address).await.unwrap();
    answered(&mut alice, 1).await;
    answered(&mut mallory, 1).await;
    authority.revoke(Role::Kme, "mallory");
    assert!(tls.reload().unwrap());
    cling(mallory).await;
    eventually("it was counted", || server.counts.cut(Cut::Certificate) == 1).await;
    answered(&mut alice, 1).await;
    eventually("only alice's is left", || server.counts.open() == 1).await;
}

#[tokio::test]
async fn a_connection_past_its_life_is_cut_whatever_its_client_withholds() {
    let limits = ListenerLimits { connection_life: SOON, close_grace: SOON, ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let client = raw(shared(), Role::Sae, "alice");
    cling(client.h2(server.address).await.unwrap()).await;
    eventually("it was counted", || server.counts.cut(Cut::Old) == 1).await;
    // And one that feeds a body of HTTP/1.1.
    let mut stream = client.tls(server.address, "http/1.1").await.unwrap();
    stream.write_all(b"POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n").await.unwrap();
    let feeding = async {
        let (mut incoming, mut outgoing) = tokio::io::split(stream);
        let feed = async {
            while outgoing.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let mut nothing = [0];
        tokio::select! {
            () = feed => {}
            _ = incoming.read(&mut nothing) => {}
        }
    };
    timeout(PATIENCE, feeding).await.expect("the connection was kept");
    eventually("it was counted", || server.counts.cut(Cut::Old) == 2).await;
}

/// Sends frames that mean nothing, as fast as the server takes them. Returns when the server has closed.
fn flood(address: SocketAddr) {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // PRIORITY of stream 1.
    let frames = b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\0".repeat(1 << 16);
    while stream.write_all(&frames).is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_past_its_life_is_cut_however_busy_its_client_keeps_it() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let limits = ListenerLimits {
        connection_life: SOON,
        close_grace: SOON,
        header_timeout: PATIENCE,
        ..ListenerLimits::default()
    };
    let (stop, counts) = (CancellationToken::new(), Arc::<ListenerCounts>::default());
    let (router, ended) = (router(Arc::default()), stop.clone());
    let serving =
        listener::serve_counted("test", tcp, ListenerTls::Plain, router, limits, ended, Arc::clone(&counts));
    let serving = tokio::spawn(serving);
    let flooding = tokio::task::spawn_blocking(move || flood(address));
    let cut = timeout(PATIENCE / 3, flooding).await;
    cut.expect("the connection is cut although it is never idle").unwrap();
    assert_eq!(counts.cut(Cut::Old), 1);
    stop.cancel();
    serving.await.unwrap();
}

/// A server, and a client whose certificate is good for a few seconds.
fn of_short_life(dir: &std::path::Path) -> (TlsFiles, RawClient) {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority = file("ca.pem", ca.pem());
    let issue = |name: &str, uri: &str, lives: Duration| {
        let mut params = CertificateParams::default();
        let uri = SanType::URI(format!("spiffe://{}/{uri}", testkit::TRUST_DOMAIN).try_into().unwrap());
        params.subject_alt_names = vec![uri, SanType::IpAddress([127, 0, 0, 1].into())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = time::OffsetDateTime::now_utc() + lives;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        (file(&format!("{name}.pem"), certificate.pem()), file(&format!("{name}.key"), key.serialize_pem()))
    };
    let (cert, key) = issue("site-a", "kme/site-a", Duration::from_hours(1));
    let server = TlsFiles { ca: authority.clone(), cert, key, crl: None };
    let (cert, key) = issue("alice", "sae/alice", Duration::from_secs(3));
    (server, RawClient::new(&authority, &cert, &key))
}

#[tokio::test]
async fn a_connection_ends_when_the_certificate_of_its_client_does() {
    let dir = tempfile::tempdir().unwrap();
    let (files, client) = of_short_life(dir.path());
    let tls = TlsStore::open(files).unwrap();
    let server = TestServer::start(tls, Kind::ALL, ListenerLimits::default()).await;
    let mut h2 = client.h2(server.address).await.unwrap();
    answered(&mut h2, 1).await;
    cling(h2).await;
    eventually("it was counted", || server.counts.cut(Cut::Certificate) == 1).await;
    let mut refused = client.tls(server.address, "h2").await.unwrap();
    let error = refused.read(&mut [0]).await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_kind_is_refused_in_the_handshake_and_holds_no_connection() {
    let tls = shared().tls(Role::Pool, "pool-1");
    let server = TestServer::start(tls, &[Kind::Kme], ListenerLimits::default()).await;
    let mut kept = Vec::new();
    for (role, id) in [(Role::Sae, "alice"), (Role::Operator, "olga"), (Role::Sae, "alice")] {
        let mut stream = raw(shared(), role, id).tls(server.address, "h2").await.unwrap();
        let error = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("AccessDenied"), "{error}");
        kept.push(stream);
    }
    assert_eq!((server.counts.refused(Refusal::Identity), server.counts.open()), (3, 0));
    let mut site_b = raw(shared(), Role::Kme, "site-b").h2(server.address).await.unwrap();
    answered(&mut site_b, 1).await;
}

#[tokio::test]
async fn a_client_gets_its_share_of_connections_and_leaves_some_for_others() {
    let server = TestServer::with(ListenerLimits { max_connections: 8, ..ListenerLimits::default() }).await;
    let mallory = raw(shared(), Role::Sae, "mallory");
    let mut hers = Vec::new();
    for _ in 0..20 {
        let mut h2 = mallory.h2(server.address).await.unwrap();
        // A refused one is closed, with or without a word.
        let Ok(stream) = h2.get("/zeros/1").await else { continue };
        if timeout(PATIENCE, h2.answer(stream)).await.unwrap().is_ok() {
            hers.push(h2);
        }
    }
    assert_eq!((hers.len(), server.counts.refused(Refusal::Share)), (4, 16));
    for id in ["alice", "bob"] {
        let mut other = raw(shared(), Role::Sae, id).h2(server.address).await.unwrap();
        answered(&mut other, 1).await;
    }
    drop(hers.pop());
    eventually("one is free", || server.counts.open() == 3).await;
    let mut again = mallory.h2(server.address).await.unwrap();
    answered(&mut again, 1).await;
}

#[tokio::test]
async fn strangers_who_never_finish_a_handshake_keep_nobody_out() {
    let limits = ListenerLimits {
        max_handshakes: 64,
        max_handshakes_per_address: 8,
        handshake_grace: Duration::ZERO,
        ..ListenerLimits::default()
    };
    let server = TestServer::with(limits).await;
    let alice = raw(shared(), Role::Sae, "alice").from_address([127, 0, 0, 3].into());
    let stranger = alice.clone().from_address([127, 0, 0, 2].into());
    // Whoever began before the flood is not displaced by it.
    let early = alice.tcp(server.address).await.unwrap();
    eventually("it counts", || server.counts.handshakes() == 1).await;
    let mut silent = Vec::new();
    for number in 1..=400_u64 {
        silent.push(stranger.tcp(server.address).await.unwrap());
        if number.is_multiple_of(40) {
            // The stranger's address has all it may have, and still a new client of it gets through.
            for client in [&alice, &stranger] {
                let mut h2 = timeout(PATIENCE, client.h2(server.address)).await.unwrap().unwrap();
                answered(&mut h2, 1).await;
            }
        }
        assert!(server.counts.handshakes() <= 1 + 8 + 1);
    }
    eventually("displaced ones are counted", || server.counts.refused(Refusal::Displaced) >= 392).await;
    let mut ended = 0;
    for stream in &mut silent[..392] {
        let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("it was kept");
        ended += usize::from(matches!(read, Ok(0) | Err(_)));
    }
    assert_eq!(ended, 392);
    let mut h2 = alice.h2_over(early, &[]).await.unwrap();
    answered(&mut h2, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_one_address_that_connect_at_once_are_all_served() {
    // More than one address may have, less than all, on a machine that may be slow.
    let limits = ListenerLimits { handshake_grace: PATIENCE, ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let alice = raw(shared(), Role::Sae, "alice");
    let clients: Vec<_> = (0..300)
        .map(|_| {
            let (alice, address) = (alice.clone(), server.address);
            tokio::spawn(async move {
                let mut h2 = alice.h2(address).await?;
                let stream = h2.get("/zeros/1").await?;
                h2.answer(stream).await
            })
        })
        .collect();
    for client in clients {
        let answer = timeout(PATIENCE, client).await.unwrap().unwrap();
        assert_eq!(answer.expect("it was displaced").status, 200);
    }
    assert_eq!(server.counts.refused(Refusal::Displaced), 0);
}

/// A connection whose client lets the server send nothing of a body.
async fn closed_window(client: &RawClient, to: SocketAddr) -> RawH2 {
    client.h2_with(to, &[(setting::INITIAL_WINDOW_SIZE, 0)]).await.unwrap()
}

#[tokio::test]
async fn requests_of_a_client_that_does_not_read_wait_and_its_connection_is_cut() {
    let limits = ListenerLimits {
        unsent_max_bytes: 64 * KIB,
        unread_timeout: Duration::from_secs(1),
        ..ListenerLimits::default()
    };
    let server = TestServer::with(limits).await;
    let mut h2 = closed_window(&raw(shared(), Role::Sae, "alice"), server.address).await;
    for _ in 0..100 {
        h2.get(&format!("/zeros/{}", 32 * KIB)).await.unwrap();
    }
    eventually("two answers wait", || server.counts.unsent_bytes() == 64 * KIB).await;
    timeout(PATIENCE, h2.until_closed()).await.expect("the connection was kept");
    assert_eq!(server.begun(), 2, "no other request began");
    eventually("it was counted", || server.counts.cut(Cut::Unread) == 1).await;
    eventually("nothing is left", || server.counts.unsent_bytes() == 0).await;
}

#[tokio::test]
async fn requests_that_waited_are_served_when_their_client_reads_on() {
    let server =
        TestServer::with(ListenerLimits { unsent_max_bytes: 64 * KIB, ..ListenerLimits::default() }).await;
    let mut h2 = closed_window(&raw(shared(), Role::Sae, "alice"), server.address).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(h2.get(&format!("/zeros/{}", 30 * KIB)).await.unwrap());
    }
    eventually("three answers wait", || server.counts.unsent_bytes() == 90 * KIB).await;
    let window = u32::try_from(30 * KIB).unwrap();
    for stream in &streams {
        h2.window_update(*stream, window).await.unwrap();
    }
    for stream in streams {
        let answer = timeout(PATIENCE, h2.answer(stream)).await.unwrap().unwrap();
        assert_eq!(answer.body.len(), 30 * KIB);
    }
    assert_eq!((server.begun(), server.counts.unsent_bytes()), (50, 0));
}

#[tokio::test]
async fn many_requests_at_once_over_one_connection_are_all_served() {
    let server =
        TestServer::with(ListenerLimits { unsent_max_bytes: 64 * KIB, ..ListenerLimits::default() }).await;
    let expected = ExpectedServer::Kme("site-a".parse().unwrap());
    let tls = shared().tls(Role::Sae, "alice");
    let client = HttpsClient::new(tls, expected, testkit::TRUST_DOMAIN, HttpVersion::Http2).unwrap();
    let asking = (0..500_usize).map(|number| {
        let (client, length) = (client.clone(), number % 7 * 9000);
        let uri = format!("https://{}/zeros/{length}", server.address);
        tokio::spawn(async move {
            let request = http::Request::get(uri).body(http_body_util::Full::default()).unwrap();
            let answer = client.send(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), length);
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        timeout(PATIENCE, asked).await.unwrap().unwrap();
    }
    assert_eq!(server.counts.unsent_bytes(), 0);
}

#[tokio::test]
async fn pipelined_requests_of_http1_whose_answers_are_not_read_are_bounded_too() {
    let limits = ListenerLimits { unread_timeout: Duration::from_secs(1), ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let client = raw(shared(), Role::Sae, "alice").receive_buffer(4096);
    let mut stream = client.tls(server.address, "http/1.1").await.unwrap();
    let request = b"GET /zeros/1048576 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    stream.write_all(&request).await.unwrap();
    eventually("it is cut", || server.counts.cut(Cut::Unread) == 1).await;
    assert!(server.begun() < 10, "{} requests began", server.begun());
    eventually("nothing is left", || server.counts.unsent_bytes() == 0).await;
}

#[tokio::test]
async fn a_client_that_takes_one_byte_now_and_then_is_cut_after_the_time_for_an_answer() {
    let limits = ListenerLimits { answer_timeout: Duration::from_secs(1), ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let mut h2 = closed_window(&raw(shared(), Role::Sae, "alice"), server.address).await;
    let stream = h2.get("/zeros/10000").await.unwrap();
    let sipping = async {
        while h2.window_update(stream, 1).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
            if let Ok(Err(_)) = timeout(Duration::from_millis(20), h2.next()).await {
                return;
            }
        }
    };
    timeout(PATIENCE, sipping).await.expect("the connection was kept");
    eventually("it was counted", || server.counts.cut(Cut::SlowReader) == 1).await;
}

#[tokio::test]
async fn a_slow_link_carries_a_large_answer_to_its_end() {
    let limits = ListenerLimits { unread_timeout: Duration::from_secs(1), ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let client = raw(shared(), Role::Sae, "alice").receive_buffer(16 * 1024);
    let mut stream = client.tls(server.address, "http/1.1").await.unwrap();
    stream.write_all(b"GET /zeros/1000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut arrived = 0;
    let mut buffer = vec![0; 8 * KIB];
    loop {
        // 1.6 Mbit/s.
        sleep(Duration::from_millis(40)).await;
        match timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            read => arrived += read,
        }
    }
    assert!(arrived > 1_000_000, "{arrived}");
    assert_eq!(server.counts.cut(Cut::Unread), 0);
}

#[tokio::test]
async fn too_much_unread_in_all_costs_the_client_with_the_most_and_nobody_else() {
    let limits = ListenerLimits { unsent_all_max_bytes: 300 * KIB, ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let mut alice = closed_window(&raw(shared(), Role::Sae, "alice"), server.address).await;
    let hers = alice.get(&format!("/zeros/{}", 40 * KIB)).await.unwrap();
    eventually("alice's answer waits", || server.counts.unsent_bytes() == 40 * KIB).await;
    let mallory = raw(shared(), Role::Sae, "mallory");
    let mut unread = Vec::new();
    for number in 1..=20_u64 {
        let mut h2 = closed_window(&mallory, server.address).await;
        h2.get(&format!("/zeros/{}", 30 * KIB)).await.unwrap();
        eventually("it began", || server.begun() as u64 == 1 + number).await;
        unread.push(h2);
    }
    eventually("the bound holds", || server.counts.unsent_bytes() <= 300 * KIB).await;
    assert!(server.counts.cut(Cut::Memory) >= 12);
    let window = u32::try_from(40 * KIB).unwrap();
    alice.window_update(hers, window).await.unwrap();
    let answer = timeout(PATIENCE, alice.answer(hers)).await.unwrap().unwrap();
    assert_eq!(answer.body.len(), 40 * KIB);
}

#[tokio::test]
async fn garbage_and_slow_handshakes_are_counted() {
    let limits = ListenerLimits { handshake_timeout: SOON, ..ListenerLimits::default() };
    let server = TestServer::with(limits).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut garbage = TcpStream::connect(server.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let foreign = raw(&TestAuthority::new(), Role::Sae, "alice");
    let _: io::Result<_> = foreign.tls(server.address, "h2").await;
    for reason in [Refusal::Slow, Refusal::Handshake] {
        eventually("it was counted", || server.counts.refused(reason) >= 1).await;
    }
    assert_eq!(server.counts.open(), 0);
    drop(silent);
}
