//! The yardstick: a server with the same HTTP library, TLS and certificates that does nothing.
//!
//! No limits, no log, no identity, no store: what it reaches is what this machine and these libraries can
//! reach. It runs in a process of its own, as a KME does, and answers every request with the same bytes,
//! shaped and sized like a key container. There is no key in it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use mtls::{TlsStore, Versions};
use tokio::net::TcpListener;

use super::BenchError;
use super::setup::Baseline;

/// The command that runs [`serve`]; part of no interface.
pub const COMMAND: &str = "bench-hello";
/// What the command's first line begins with; the address follows.
pub const READY: &str = "hello ";
/// The ID in the answer.
const ID: &str = "00000000-0000-4000-8000-000000000000";

/// The answer: a container of `number` entries whose keys are as long as those of `key_bytes` bytes, all zeros.
pub fn body(number: u32, key_bytes: usize) -> Bytes {
    let key = "A".repeat(key_bytes.div_ceil(3) * 4);
    let entry = format!(r#"{{"key_ID":"{ID}","key":"{key}"}}"#);
    let entries: Vec<&str> = (0..number).map(|_| entry.as_str()).collect();
    Bytes::from(format!(r#"{{"keys":[{}]}}"#, entries.join(",")))
}

/// Answers every request on `tcp` with `body`, for ever.
pub async fn serve(tcp: TcpListener, tls: Arc<TlsStore>, body: Bytes) {
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
    let acceptor = tls.acceptor(Versions::Compatible);
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

/// A yardstick in a process of its own, which ends with this value.
pub(super) struct Yardstick {
    child: Child,
    pub(super) url: String,
}

impl Yardstick {
    /// Starts this program once more.
    pub(super) fn start(baseline: &Baseline, number: u32, key_bytes: usize) -> Result<Self, BenchError> {
        let failed = |error: std::io::Error| BenchError(format!("the yardstick did not start: {error}"));
        let files = &baseline.files;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(COMMAND).arg("--ca").arg(&files.ca).arg("--cert").arg(&files.cert);
        command.arg("--key").arg(&files.key);
        if let Some(crl) = &files.crl {
            command.arg("--crl").arg(crl);
        }
        command.args(["--number", &number.to_string(), "--key-bytes", &key_bytes.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let mut yardstick = Self { child, url: String::new() };
        match line.trim_end().strip_prefix(READY) {
            Some(address) => yardstick.url = format!("https://{address}"),
            None => return Err(BenchError("the yardstick did not start; it says why above".to_owned())),
        }
        Ok(yardstick)
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::KeyContainer;

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
