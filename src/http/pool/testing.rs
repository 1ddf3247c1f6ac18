//! A network of pool servers for tests: real listeners, real clients.

mod net;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use tokio_util::sync::CancellationToken;

use blast::MIN_POOL_WORDS;
use kme::{ManualClock, OsRandom, Timestamp};

use crate::pool::{PoolClient, PoolVault, VaultLimits};
use net::{https, listen, serve, url_of};

pub(crate) const WORDS: usize = MIN_POOL_WORDS;
pub(crate) const POOL_BYTES: u64 = 8 * WORDS as u64;

/// Whose certificate a call carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller {
    Kme(&'static str),
    Sae(&'static str),
    Operator(&'static str),
}

/// What a server does with the pools that it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conduct {
    Honest,
    /// Sends this KME other bytes than everybody else.
    LiesTo(&'static str),
    /// Begins to send to this KME, and never goes on.
    NeverEndsFor(&'static str),
    /// Says that this KME has read each pool many times.
    InventsReadsOf(&'static str),
}

pub(crate) fn limits() -> VaultLimits {
    VaultLimits {
        memory_max_bytes: 64 << 20,
        owner_memory_max_bytes: 64 << 20,
        pools_max: 64,
        words_min: MIN_POOL_WORDS,
        words_max: 1 << 17,
        ttl_max: Duration::from_hours(1),
        readers_max: 8,
        kmes: None,
    }
}

pub(crate) fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::starting_at(Timestamp::from_ms(1_795_392_000_000)))
}

pub(crate) struct HttpAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl HttpAnswer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One running pool server.
pub(crate) struct TestServer {
    pub(crate) name: &'static str,
    pub(crate) vault: Arc<PoolVault>,
    pub(crate) clock: Arc<ManualClock>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl TestServer {
    pub(crate) async fn start(name: &'static str, limits: VaultLimits) -> Self {
        Self::start_with(name, limits, manual_clock()).await
    }

    pub(crate) async fn start_with(name: &'static str, limits: VaultLimits, clock: Arc<ManualClock>) -> Self {
        Self::conducted(name, limits, clock, Conduct::Honest).await
    }

    /// A server that misbehaves.
    pub(crate) async fn conducted(
        name: &'static str,
        limits: VaultLimits,
        clock: Arc<ManualClock>,
        conduct: Conduct,
    ) -> Self {
        let vault = Arc::new(PoolVault::new(limits, clock.clone(), Arc::new(OsRandom)));
        let stop = CancellationToken::new();
        let address = listen(name, &vault, conduct, &stop).await;
        Self { name, vault, clock, address, stop }
    }

    /// An empty server at an address that another one had.
    pub(crate) async fn at(name: &'static str, address: SocketAddr, clock: Arc<ManualClock>) -> Self {
        let vault = Arc::new(PoolVault::new(limits(), clock.clone(), Arc::new(OsRandom)));
        let stop = CancellationToken::new();
        let tcp = tokio::net::TcpListener::bind(address).await.unwrap();
        serve(tcp, name, &vault, Conduct::Honest, &stop);
        Self { name, vault, clock, address, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same server after a restart: empty, and at a new port.
    pub(crate) async fn restarted(self) -> Self {
        Self::start_with(self.name, limits(), self.clock.clone()).await
    }

    pub(crate) fn url(&self) -> Uri {
        url_of(self.address)
    }

    /// A client that carries the certificate of `caller`.
    pub(crate) fn client(&self, caller: Caller) -> PoolClient {
        client_at(self.name, self.address, caller)
    }

    /// One request with the certificate of `caller`.
    pub(crate) async fn call(&self, caller: Caller, method: Method, path: &str, body: &str) -> HttpAnswer {
        let base = self.url().to_string();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", base.trim_end_matches('/')))
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let (parts, body) = https(self.name, caller).send(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        HttpAnswer { status: parts.status, headers: parts.headers, body }
    }
}

/// A client of a server that does not exist.
pub(crate) async fn client_of_nobody(name: &'static str, caller: Caller) -> PoolClient {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    client_at(name, address, caller)
}

fn client_at(name: &'static str, address: SocketAddr, caller: Caller) -> PoolClient {
    let https = https(name, caller);
    PoolClient::new(name.parse().unwrap(), &url_of(address), https, Duration::from_secs(20))
}
