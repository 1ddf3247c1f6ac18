//! The baseline: a server with the HTTP library and TLS of dqkd that does nothing.
//!
//! It has no limits, no log, no identities and no store, so its rate is what this machine and these libraries
//! can reach. It runs in its own process, as a KME does, demands and verifies the client's certificate, and
//! answers every request with the same bytes: a key container in form and size, but without a key.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use kme::causes;
use mtls::{TlsFiles, TlsParts, TlsStore, Versions};
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use super::error::BenchError;
use super::setup::{Baseline, End};

/// The command that runs [`serve`]. Not a public interface.
pub(crate) const COMMAND: &str = "baseline-server";
/// The beginning of the command's only line. The address follows, and the throw-away certificate in base64 if
/// there is one.
const READY: &str = "baseline ";
/// The ID in the answer.
const ID: &str = "00000000-0000-4000-8000-000000000000";

/// The answer: a container of `number` entries whose keys are as long as those of `key_bytes` bytes, all
/// zeros.
pub(crate) fn body(number: u32, key_bytes: usize) -> Bytes {
    let key = "A".repeat(key_bytes.div_ceil(3) * 4);
    let entry = format!(r#"{{"key_ID":"{ID}","key":"{key}"}}"#);
    let entries: Vec<&str> = (0..number).map(|_| entry.as_str()).collect();
    Bytes::from(format!(r#"{{"keys":[{}]}}"#, entries.join(",")))
}

/// The identity of the baseline.
pub(crate) struct Identity {
    tls: Arc<TlsStore>,
    /// The throw-away certificate, which clients must trust; DER.
    throw_away: Option<Vec<u8>>,
}

impl Identity {
    /// The certificate of `files`.
    ///
    /// # Errors
    /// [`BenchError`] naming the file.
    pub(crate) fn from_files(files: TlsFiles) -> Result<Self, BenchError> {
        let tls = TlsStore::open(files).map_err(|error| BenchError(causes(&error)))?;
        Ok(Self { tls, throw_away: None })
    }

    /// A new certificate for 127.0.0.1 whose key never leaves this process: ECDSA with P-256, as the demo's
    /// are. Clients' certificates must come from `client_ca`.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(crate) fn throw_away(client_ca: &Path) -> Result<Self, BenchError> {
        let failed = |error: rcgen::Error| BenchError(format!("no certificate for the baseline: {error}"));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.der().to_vec();
        let ca_pem = std::fs::read(client_ca)
            .map_err(|error| BenchError(format!("cannot read {}: {error}", client_ca.display())))?;
        let parts = TlsParts {
            ca_pem,
            chain_der: vec![certificate.clone()],
            key_der: Zeroizing::new(key.serialize_der()),
        };
        let own = PathBuf::from("the baseline's certificate");
        let names = TlsFiles { ca: client_ca.to_owned(), cert: own.clone(), key: own, crl: None };
        let tls = TlsStore::from_parts(parts, names).map_err(|error| BenchError(causes(&error)))?;
        Ok(Self { tls, throw_away: Some(certificate) })
    }

    /// The line that tells the load generator where the baseline is.
    pub(crate) fn ready_line(&self, address: std::net::SocketAddr) -> String {
        let certificate = self.throw_away.as_deref().map(|der| STANDARD.encode(der)).unwrap_or_default();
        format!("{READY}{address} {certificate}")
    }
}

/// Answers every request on `tcp` with `body`, for ever.
pub(crate) async fn serve(tcp: TcpListener, identity: &Identity, body: Bytes) {
    let answer = move || {
        let body = body.clone();
        async move {
            let mut response = body.into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    };
    let router = Router::new().fallback(answer);
    let acceptor = identity.tls.acceptor(Versions::Compatible);
    loop {
        let Ok((stream, _)) = tcp.accept().await else { continue };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let builder = Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
        });
    }
}

/// A baseline in its own process, which ends when this is dropped.
pub(super) struct BaselineProcess {
    child: Child,
    address: String,
    /// PEM.
    throw_away: Option<String>,
}

impl BaselineProcess {
    /// Starts this program again, as the baseline.
    pub(super) fn start(baseline: &Baseline, number: u32, key_bytes: usize) -> Result<Self, BenchError> {
        let failed = |error: std::io::Error| BenchError(format!("the baseline did not start: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(COMMAND).arg("--client-ca").arg(&baseline.client_ca);
        if let Some((cert, key)) = &baseline.certificate {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        command.args(["--number", &number.to_string(), "--key-bytes", &key_bytes.to_string()]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut process = Self { child, address: String::new(), throw_away: None };
        let mut line = String::new();
        if let Some(stdout) = process.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let silent = || BenchError("the baseline did not start; it says why above".to_owned());
        let told = line.trim_end_matches('\n').strip_prefix(READY).ok_or_else(silent)?;
        let (address, certificate) = told.split_once(' ').ok_or_else(silent)?;
        address.clone_into(&mut process.address);
        process.throw_away = (!certificate.is_empty())
            .then(|| format!("-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n"));
        Ok(process)
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// `end`, but calling the baseline. It trusts only the throw-away certificate, if there is one.
    pub(super) fn instead_of(&self, end: &End) -> Result<End, BenchError> {
        let url = self.url().parse().map_err(|error| BenchError(format!("the baseline: {error}")))?;
        let credentials = match &self.throw_away {
            None => end.credentials.clone(),
            Some(pem) => {
                let trusting = end.credentials.0.trusting(pem.as_bytes());
                trusting.map_err(|error| BenchError(causes(&error)))?.into()
            }
        };
        Ok(End { url, credentials, name: end.name.clone() })
    }
}

impl Drop for BaselineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::KeyContainer;

    #[test]
    fn the_answer_is_shaped_like_a_key_container_without_a_key() {
        for (number, key_bytes) in [(1, 32), (3, 1), (2, 0)] {
            let container: KeyContainer = serde_json::from_slice(&body(number, key_bytes)).unwrap();
            assert_eq!(container.keys.len(), usize::try_from(number).unwrap());
            for key in container.keys {
                assert!(key.key.expose().iter().all(|byte| *byte == 0));
                assert_eq!(key.key.len(), key_bytes.div_ceil(3) * 3);
            }
        }
        // As long as what a KME writes for one key of 256 bits.
        assert_eq!(body(1, 32).len(), 113);
    }
}
