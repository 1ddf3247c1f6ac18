//! Real connections over loopback: who is accepted, which identity they get, what is bounded.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request as AxumRequest;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use mtls::identity::{ClientIdentity, Kind};
use mtls::*;
use pki::Role;
use rustls::NamedGroup;
use testkit::{TRUST_DOMAIN, TestAuthority};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct TestServer {
    address: SocketAddr,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl TestServer {
    async fn start(tls: Arc<TlsStore>, service: impl ListenerService, limits: ListenerLimits) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (rules, versions) = (testkit::spiffe_rules(), Versions::Latest);
        let tls = ListenerTls::Mutual { store: tls, rules, accepts: Kind::ALL, versions };
        let ended = tokio::spawn(listener::serve("test", tcp, tls, service, limits, stop.clone()));
        Self { address, stop, ended }
    }

    async fn whoami() -> Self {
        let tls = testkit::shared().tls(Role::Kme, "site-a");
        Self::start(tls, whoami(), ListenerLimits::default()).await
    }
}

/// A router that counts its connections.
struct Counting {
    opened: Arc<AtomicUsize>,
    router: Router,
}

impl ListenerService for Counting {
    type Connection = <Router as ListenerService>::Connection;

    fn open(&self, client: ClientIdentity) -> Self::Connection {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.router.open(client)
    }
}

/// Answers with the name in the caller's certificate.
fn whoami() -> Router {
    let name = |request: AxumRequest| async move {
        let identity = request.extensions().get::<ClientIdentity>().unwrap();
        identity.name().unwrap_or("nobody").to_owned()
    };
    Router::new().route("/", get(name)).route("/refuse", post(|| async { StatusCode::BAD_REQUEST }))
}

fn client(tls: Arc<TlsStore>, expected: ExpectedServer) -> HttpsClient {
    HttpsClient::new(tls, expected, TRUST_DOMAIN, HttpVersion::Http2).unwrap()
}

fn site_a() -> ExpectedServer {
    ExpectedServer::Kme("site-a".parse().unwrap())
}

async fn ask(client: &HttpsClient, address: SocketAddr) -> Result<String, HttpsError> {
    let request = Request::get(format!("https://{address}/")).body(Full::default()).unwrap();
    let response = client.send(request).await?;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_router_learns_who_the_client_is() {
    let server = TestServer::whoami().await;
    for (role, id) in [(Role::Kme, "site-b"), (Role::Sae, "alice"), (Role::Operator, "olga")] {
        let client = client(testkit::shared().tls(role, id), site_a());
        assert_eq!(ask(&client, server.address).await.unwrap(), id);
    }
}

#[tokio::test]
async fn a_client_talks_to_nobody_but_the_server_it_expects() {
    let server = TestServer::whoami().await;
    let tls = testkit::shared().tls(Role::Kme, "site-b");
    for wrong in
        [ExpectedServer::Kme("site-c".parse().unwrap()), ExpectedServer::Pool("site-a".parse().unwrap())]
    {
        let refused = ask(&client(tls.clone(), wrong.clone()), server.address).await.unwrap_err();
        let HttpsError::Connect(reason) = &refused else { panic!("{wrong:?}: {refused:?}") };
        assert!(reason.contains("site-a"), "{reason}");
    }
    // By host name: the certificate is for 127.0.0.1 and localhost. A certificate of another authority is
    // refused.
    assert!(ask(&client(tls, ExpectedServer::HostName), server.address).await.is_ok());
    let foreign = TestAuthority::new().tls(Role::Kme, "site-b");
    assert!(ask(&client(foreign, site_a()), server.address).await.is_err());
}

#[tokio::test]
async fn a_server_whose_certificate_was_revoked_is_not_believed() {
    let authority = TestAuthority::new();
    let server_tls = authority.tls(Role::Kme, "site-a");
    let server = TestServer::start(server_tls, whoami(), ListenerLimits::default()).await;
    let tls = authority.tls(Role::Kme, "site-b");
    let client = client(tls.clone(), site_a());
    assert!(ask(&client, server.address).await.is_ok());
    authority.revoke(Role::Kme, "site-a");
    assert!(tls.reload().unwrap(), "the CRL changed");
    assert!(!tls.reload().unwrap(), "and not again");
    let refused = ask(&client, server.address).await.unwrap_err();
    assert!(refused.to_string().to_lowercase().contains("revoked"), "{refused}");
}

#[tokio::test]
async fn a_revoked_client_loses_its_open_connection_and_gets_no_new_one() {
    let authority = TestAuthority::new();
    let server_tls = authority.tls(Role::Kme, "site-a");
    let server = TestServer::start(server_tls.clone(), whoami(), ListenerLimits::default()).await;
    let client = client(authority.tls(Role::Sae, "bob"), site_a());
    assert!(ask(&client, server.address).await.is_ok());
    authority.revoke(Role::Sae, "bob");
    assert!(server_tls.reload().unwrap());
    let refused = async {
        while ask(&client, server.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the connection was kept");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_sides() {
    let past = TestAuthority::of_the_past();
    let server = TestServer::start(past.tls(Role::Kme, "site-a"), whoami(), ListenerLimits::default()).await;
    let refused = ask(&client(past.tls(Role::Kme, "site-b"), site_a()), server.address).await.unwrap_err();
    assert!(refused.to_string().contains("expired"), "{refused}");
}

/// A connection of site-b after the handshake, without HTTP.
async fn shaken(address: SocketAddr) -> TlsStream<TcpStream> {
    let dialer = Dialer::new(testkit::shared().tls(Role::Kme, "site-b"));
    let offer = Offer { tls: OfferedTls::Both, alpn: &[], certificate: true };
    dialer.dial("127.0.0.1", address.port(), offer).await.unwrap()
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_negotiated() {
    let server = TestServer::whoami().await;
    let stream = shaken(server.address).await;
    let (_, connection) = stream.get_ref();
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

/// Reads until the other side closes.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let reading = stream.read_to_end(&mut rest);
    tokio::time::timeout(PATIENCE, reading).await.expect("the connection stayed open").ok();
}

#[tokio::test]
async fn a_client_that_never_finishes_the_handshake_is_cut_off() {
    let limits = ListenerLimits { handshake_timeout: Duration::from_millis(50), ..ListenerLimits::default() };
    let server = TestServer::start(testkit::shared().tls(Role::Kme, "site-a"), whoami(), limits).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    closed(&mut silent).await;
    let mut garbage = TcpStream::connect(server.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(&mut garbage).await;
}

#[tokio::test]
async fn a_client_that_connects_and_asks_nothing_is_cut_off() {
    let limits = ListenerLimits { header_timeout: Duration::from_millis(50), ..ListenerLimits::default() };
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(listener::serve("test", tcp, ListenerTls::Plain, whoami(), limits, stop.clone()));
    let mut silent = TcpStream::connect(address).await.unwrap();
    closed(&mut silent).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HT").await.unwrap();
    closed(&mut slow).await;
    stop.cancel();
}

#[tokio::test]
async fn a_stop_lets_a_request_under_way_finish_and_takes_no_more() {
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (began_there, go_on_there) = (began.clone(), go_on.clone());
    let router = Router::new().route(
        "/",
        get(move || async move {
            began_there.notify_one();
            go_on_there.notified().await;
            "done"
        }),
    );
    let tls = testkit::shared().tls(Role::Kme, "site-a");
    let mut server = TestServer::start(tls, router, ListenerLimits::default()).await;
    let client = client(testkit::shared().tls(Role::Sae, "alice"), site_a());
    let (address, asking) = (server.address, client.clone());
    let under_way = tokio::spawn(async move { ask(&asking, address).await });
    began.notified().await;
    server.stop.cancel();
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("the port stayed open");
    go_on.notify_one();
    assert_eq!(under_way.await.unwrap().unwrap(), "done");
    tokio::time::timeout(PATIENCE, &mut server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_after_the_grace() {
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = reached.clone();
    let router = Router::new().route(
        "/",
        get(move || async move {
            counter.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }),
    );
    let limits = ListenerLimits { shutdown_grace: Duration::from_millis(50), ..ListenerLimits::default() };
    let mut server = TestServer::start(testkit::shared().tls(Role::Kme, "site-a"), router, limits).await;
    let client = client(testkit::shared().tls(Role::Sae, "alice"), site_a());
    let address = server.address;
    let asking = tokio::spawn(async move { ask(&client, address).await });
    while reached.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop.cancel();
    tokio::time::timeout(PATIENCE, &mut server.ended).await.unwrap().unwrap();
    assert!(matches!(asking.await.unwrap(), Err(HttpsError::Broken(_))));
}

#[tokio::test]
async fn a_connection_past_its_life_is_replaced_without_a_failed_request() {
    let limits = ListenerLimits { connection_life: Duration::from_millis(20), ..ListenerLimits::default() };
    let service = Counting { opened: Arc::default(), router: whoami() };
    let opened = service.opened.clone();
    let server = TestServer::start(testkit::shared().tls(Role::Kme, "site-a"), service, limits).await;
    let client = client(testkit::shared().tls(Role::Sae, "alice"), site_a());
    while opened.load(Ordering::SeqCst) < 3 {
        assert_eq!(ask(&client, server.address).await.unwrap(), "alice");
    }
}

#[tokio::test]
async fn an_http1_connection_past_its_life_says_so_in_its_last_answer() {
    let life = Duration::from_millis(500);
    let limits = ListenerLimits { connection_life: life, ..ListenerLimits::default() };
    let server = TestServer::start(testkit::shared().tls(Role::Kme, "site-a"), whoami(), limits).await;
    let mut stream = shaken(server.address).await;
    for (request, is_last) in [(1, false), (2, true)] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4096];
        let mut length = 0;
        while !answer[..length].ends_with(b"site-b") {
            let read =
                tokio::time::timeout(PATIENCE, stream.read(&mut answer[length..])).await.unwrap().unwrap();
            assert_ne!(read, 0, "request {request} was not answered");
            length += read;
        }
        let head = String::from_utf8_lossy(&answer[..length]).to_lowercase();
        assert_eq!(head.contains("connection: close"), is_last, "{head}");
        // Idle and past its life.
        tokio::time::sleep(2 * life).await;
    }
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(end, Ok(0)), "{end:?}");
}

/// With the body dropped unread, HTTP/2 would reset the stream before the answer.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = TestServer::whoami().await;
    let client = client(testkit::shared().tls(Role::Sae, "alice"), site_a());
    for _ in 0..20 {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}/refuse", server.address))
            .body(Full::new(Bytes::from(vec![0; 4 << 20])))
            .unwrap();
        assert_eq!(client.send(request).await.unwrap().status(), StatusCode::BAD_REQUEST);
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    let authority = testkit::shared();
    let good = authority.files(Role::Kme, "site-a");
    let other = authority.files(Role::Kme, "site-b");
    let complaint = |files: TlsFiles| TlsStore::open(files).unwrap_err().to_string();
    let wrong_key = complaint(TlsFiles { key: other.key, ..good.clone() });
    assert!(wrong_key.contains(".key does not go with"), "{wrong_key}");
    let no_key = complaint(TlsFiles { key: good.cert.clone(), ..good.clone() });
    assert!(no_key.contains("has no private key"), "{no_key}");
    let no_certificate = complaint(TlsFiles { cert: good.key.clone(), ..good.clone() });
    assert!(no_certificate.contains("has no certificate"), "{no_certificate}");
    let no_ca = complaint(TlsFiles { ca: good.key.clone(), ..good.clone() });
    assert!(no_ca.contains("has no certificate"), "{no_ca}");
    let no_list = complaint(TlsFiles { crl: Some(good.ca.clone()), ..good.clone() });
    assert!(no_list.contains("has no revocation list"), "{no_list}");
    let missing = complaint(TlsFiles { ca: "/does/not/exist".into(), ..good });
    assert!(missing.contains("/does/not/exist cannot be read"), "{missing}");
}

#[test]
fn a_reload_that_fails_keeps_the_old_certificates() {
    let authority = TestAuthority::new();
    let files = authority.files(Role::Kme, "site-a");
    let store = TlsStore::open(files.clone()).unwrap();
    let end = store.not_after();
    std::fs::write(&files.cert, "nonsense").unwrap();
    assert!(store.reload().is_err());
    assert_eq!((store.not_after(), store.generation()), (end, 0));
}
