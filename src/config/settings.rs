//! The settings that both kinds of daemon share. All values are checked.

use std::net::SocketAddr;
use std::time::Duration;

use mtls::{DaemonTls, TlsFiles};
use toml::Spanned;

use super::checker::{Checker, Scope};
use super::raw::{RawDanger, RawLog, RawTls};

/// `[tls]`: absolute paths of PEM files. `is_local` says whether every listener is on loopback; then the public
/// development keys may be used.
pub(super) fn tls(
    checker: &mut Checker<'_>,
    raw: Option<Spanned<RawTls>>,
    danger: DangerConfig,
    is_local: bool,
) -> Option<DaemonTls> {
    let (scope, raw) = Scope::open("tls", raw);
    let form = "the path of a PEM file";
    let ca = checker.required(&scope, "ca", raw.ca, form).and_then(|field| checker.file(field));
    let cert = checker.required(&scope, "cert", raw.cert, form).and_then(|field| checker.file(field));
    let key = checker.required(&scope, "key", raw.key, form).and_then(|field| checker.secret_file(field));
    let mut optional = |key, raw: Option<Spanned<String>>| {
        raw.map(|raw| checker.required(&scope, key, Some(raw), form).and_then(|field| checker.file(field)))
    };
    let crl = optional("crl", raw.crl);
    let sae_ca = optional("sae_ca", raw.sae_ca);
    let crl_exempt = crl_exempt(checker, &scope, raw.crl_exempt, crl.is_some());
    Some(DaemonTls {
        files: TlsFiles { ca: ca?, cert: cert?, key: key?, crl: crl.flatten() },
        sae_ca: sae_ca.flatten(),
        crl_exempt,
        development_keys: is_local || danger.public_development_keys,
    })
}

fn crl_exempt(
    checker: &mut Checker<'_>,
    scope: &Scope,
    raw: Option<Spanned<Vec<Spanned<String>>>>,
    has_lists: bool,
) -> Vec<String> {
    let Some(written) = raw else { return Vec::new() };
    let at = scope.at("crl_exempt", Some(&written));
    let names: Vec<String> = written.into_inner().into_iter().map(Spanned::into_inner).collect();
    if names.iter().any(|name| name.trim().is_empty()) {
        checker.problem(&at, "has an empty name", "common names or whole subjects of CAs");
    }
    if !has_lists && !names.is_empty() {
        checker.problem(&at, "exempts CAs from lists, but tls.crl names none", "with tls.crl only");
    }
    names
}

/// `[danger]`: what is wrong in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DangerConfig {
    /// Whether keys that everybody has may be used by a daemon that others can reach.
    pub public_development_keys: bool,
}

impl DangerConfig {
    pub(super) fn check(raw: Option<Spanned<RawDanger>>) -> Self {
        let (_, raw) = Scope::open("danger", raw);
        let public_development_keys = raw.public_development_keys.is_some_and(Spanned::into_inner);
        Self { public_development_keys }
    }
}

/// `[log] format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object for each event.
    Json,
}

/// `[log] level`: the least urgent events that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures of this daemon.
    Error,
    /// Failures of clients and peers, and conditions that an operator should look at.
    Warn,
    /// Starts, stops, reloads and other changes of the service.
    Info,
    /// Single requests and batches.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Least urgent events that are written. `DQKD_LOG` and `RUST_LOG` take precedence.
    pub level: LogLevel,
    /// Format of the lines on standard error.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text }
    }
}

impl LogConfig {
    pub(super) fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawLog>>) -> Self {
        let (scope, raw) = Scope::open("log", raw);
        let default = Self::default();
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]
            .map(|level| (level.as_str(), level));
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Self {
            level: checker.choice(&scope, "level", raw.level.as_ref(), default.level, &levels),
            format: checker.choice(&scope, "format", raw.format.as_ref(), default.format, &formats),
        }
    }
}

/// `[limits] max_handshakes` and `max_handshakes_per_address` of both kinds of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakesConfig {
    /// Most unfinished TLS handshakes of each listener.
    pub max: usize,
    /// Most of them from one address.
    pub max_per_address: usize,
}

impl HandshakesConfig {
    pub(super) fn check(
        checker: &mut Checker<'_>,
        scope: &Scope,
        max: Option<Spanned<i64>>,
        max_per_address: Option<Spanned<i64>>,
    ) -> Self {
        const KEY: &str = "max_handshakes_per_address";
        let max = checker.number(scope, "max_handshakes", max, 512_usize, 1..=65_536).value;
        let of_one = checker.number(scope, KEY, max_per_address, 64.min(max), 1..=65_536);
        if of_one.value > max {
            let what = format!("{} is more than limits.max_handshakes = {max}", of_one.value);
            checker.problem(&of_one.at, &what, "max_handshakes_per_address <= max_handshakes");
        }
        Self { max, max_per_address: of_one.value }
    }
}

/// `[limits] shutdown_grace` of both kinds of daemon: zero to ten minutes.
pub(super) fn shutdown_grace(
    checker: &mut Checker<'_>,
    scope: &Scope,
    raw: Option<Spanned<String>>,
) -> Duration {
    let range = Duration::ZERO..=Duration::from_mins(10);
    checker.duration(scope, "shutdown_grace", raw, Duration::from_secs(10), range).value
}

/// Whether an admin listener at that address speaks plain HTTP. Any other demands an operator certificate.
pub(super) fn is_loopback(admin: SocketAddr) -> bool {
    admin.ip().is_loopback()
}
