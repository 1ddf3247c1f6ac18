//! `dqkd ready`: prints the answer to `/readyz`, for health checks and scripts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::Args;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mtls::{DaemonTls, ExpectedServer, HttpVersion, HttpsClient, TlsFiles, TlsStore};
use serde::Deserialize;

use super::{Failure, Outcome, block_on};
use crate::config::{self, ConfigFile};

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

#[derive(Debug, Args)]
pub(super) struct ReadyArgs {
    /// The daemon's configuration file; it says where the admin listener is and who must answer there
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Certificate of an operator with its intermediates (PEM), for an admin listener that is not on loopback
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the operator (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Longest wait for the answer in seconds
    #[arg(long, value_name = "N", default_value_t = 5)]
    timeout: u64,
}

/// The answer to `/readyz`.
#[derive(Debug, Deserialize)]
struct ReadyAnswer {
    ready: bool,
    parts: Vec<ReadyPart>,
}

#[derive(Debug, Deserialize)]
struct ReadyPart {
    name: String,
    condition: String,
    message: Option<String>,
}

/// The admin listener of one daemon.
struct Admin {
    address: SocketAddr,
    is_plain: bool,
    expected: ExpectedServer,
    trust_domain: String,
    tls: DaemonTls,
}

/// Prints one line for each part; fails if the daemon is not ready or does not answer.
pub(super) fn run(args: &ReadyArgs) -> Outcome {
    let admin = Admin::of(config::load(&args.config, config::process_environment())?);
    if admin.address.port() == 0 {
        return Err(Failure::Usage(
            "listen.admin has port 0, so its address is not known: give it a fixed port".to_owned(),
        ));
    }
    let timeout = Duration::from_secs(args.timeout.clamp(1, 3600));
    let answer = block_on(async {
        tokio::time::timeout(timeout, admin.ask(args)).await.map_err(|_| {
            anyhow!("{} did not answer in {} s: is the daemon running?", admin.address, timeout.as_secs())
        })?
    })??;
    for ReadyPart { name, condition, message } in &answer.parts {
        match message {
            Some(message) => println!("{condition:<8} {name}: {message}"),
            None => println!("{condition:<8} {name}"),
        }
    }
    if answer.ready {
        Ok(())
    } else {
        Err(Failure::Failed(anyhow!("{} is not ready: see the parts that failed", admin.address)))
    }
}

impl Admin {
    fn of(file: ConfigFile) -> Self {
        match file {
            ConfigFile::Kme(config) => Self {
                address: reachable(config.listen.admin),
                is_plain: config.listen.admin_is_loopback(),
                expected: ExpectedServer::Kme(config.id.clone()),
                trust_domain: config.trust_domain.clone(),
                tls: config.tls.clone(),
            },
            ConfigFile::Pool(config) => Self {
                address: reachable(config.listen.admin),
                is_plain: config.listen.admin_is_loopback(),
                expected: ExpectedServer::Pool(config.id.clone()),
                trust_domain: config.trust_domain.clone(),
                tls: config.tls.clone(),
            },
        }
    }

    async fn ask(&self, args: &ReadyArgs) -> anyhow::Result<ReadyAnswer> {
        let scheme = if self.is_plain { "http" } else { "https" };
        let url = format!("{scheme}://{}/readyz", self.address);
        let request = Request::get(&url).body(Full::new(Bytes::new()))?;
        let response: Response<Incoming> = match (self.is_plain, &args.cert, &args.key) {
            (true, _, _) => Client::builder(TokioExecutor::new())
                .build_http()
                .request(request)
                .await
                .with_context(|| format!("{url} does not answer: is the daemon running?"))?,
            (false, Some(cert), Some(key)) => self.client(cert, key)?.send(request).await?,
            (false, _, _) => {
                return Err(anyhow!("{url} demands an operator certificate: give --cert and --key"));
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|_| anyhow!("the answer of {url} is too long or incomplete"))?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| anyhow!("{url} answered {status}, but not with readiness"))
    }

    fn client(&self, cert: &Path, key: &Path) -> anyhow::Result<HttpsClient> {
        let files = TlsFiles { cert: cert.to_owned(), key: key.to_owned(), ..self.tls.files.clone() };
        let tls = TlsStore::open_daemon(DaemonTls { files, ..self.tls.clone() })?;
        let expected = self.expected.clone();
        Ok(HttpsClient::new(tls, expected, &self.trust_domain, HttpVersion::Http1Or2)?)
    }
}

/// Replaces "all addresses" by loopback, where such a listener can be reached.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use pki::Role;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use mtls::identity::Kind;
    use mtls::{ListenerLimits, ListenerTls, Versions, listener};

    /// An admin listener of KME `site-a` over mutual TLS, which answers everybody with a certificate of the
    /// chain.
    async fn serve(stop: &CancellationToken) -> SocketAddr {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let tls = ListenerTls::Mutual {
            store: testkit::shared().tls(Role::Kme, "site-a"),
            rules: testkit::spiffe_rules(),
            accepts: &[Kind::Operator],
            versions: Versions::Compatible,
        };
        let answer = r#"{"ready": false, "parts": [{"name": "store", "condition": "failed"}]}"#;
        let router = Router::new().route("/readyz", get(move || async move { answer }));
        tokio::spawn(listener::serve("admin", tcp, tls, router, ListenerLimits::default(), stop.clone()));
        address
    }

    fn args(cert: Option<PathBuf>, key: Option<PathBuf>) -> ReadyArgs {
        ReadyArgs { config: PathBuf::new(), cert, key, timeout: 30 }
    }

    #[tokio::test]
    async fn an_operator_asks_over_mutual_tls_and_only_the_right_daemon_is_believed() {
        let stop = CancellationToken::new();
        let address = serve(&stop).await;
        let files = testkit::shared().files(Role::Operator, "probe");
        let admin = |id: &str| Admin {
            address,
            is_plain: false,
            expected: ExpectedServer::Kme(id.parse().unwrap()),
            trust_domain: testkit::TRUST_DOMAIN.to_owned(),
            tls: TlsFiles { cert: "-".into(), key: "-".into(), ..files.clone() }.into(),
        };
        let operator = args(Some(files.cert.clone()), Some(files.key.clone()));
        let answer = admin("site-a").ask(&operator).await.unwrap();
        assert!(!answer.ready && answer.parts[0].condition == "failed");
        assert!(admin("site-b").ask(&operator).await.is_err(), "another KME answers there");
        let error = admin("site-a").ask(&args(None, None)).await.unwrap_err().to_string();
        assert!(error.contains("--cert and --key"), "{error}");
        stop.cancel();
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listens, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")]
        {
            assert_eq!(reachable(listens.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
