//! Postgres: from a URL to the servers that it names, and connections to them.
//!
//! The URL is libpq's and may name several hosts. They are tried in order; only one that takes writes is
//! used. Every wait for a server is bounded: by the server (`statement_timeout` and others, set for each
//! session) and here.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::AnyConnection;
use sqlx::any::AnyConnectOptions;
use sqlx::{ConnectOptions, SqlSafeStr};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::store::error::StoreError;

/// Longest time for a server to accept a connection and say whether it takes writes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of each session. The timeouts bound every wait; the server ends a session that goes silent inside
/// a transaction, which frees its locks. The planner may use only indexes: the statistics of tables that
/// change this fast are always wrong (docs/lab/query-plans.md shows the plans), and a plan for the very values of a
/// statement's parameters costs time and is no better.
const SESSION: &str = "-c statement_timeout=5000 -c lock_timeout=3000 \
     -c idle_in_transaction_session_timeout=5000 -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 \
     -c tcp_keepalives_count=3 -c default_transaction_isolation=read\\ committed -c jit=off \
     -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c plan_cache_mode=force_generic_plan";

/// Parameters that the URL may have. Any other is refused, so that a misspelt `sslmode` is noticed.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "port",
    "user",
    "dbname",
    "application_name",
    "options",
];

const CHECK: &str = "SELECT CASE WHEN pg_is_in_recovery() \
     OR current_setting('default_transaction_read_only') = 'on' THEN 1 ELSE 0 END, \
     current_setting('synchronous_commit'), current_setting('fsync')";
const COMMIT_TO_DISK: &str = "SET synchronous_commit = on";

/// The servers that a URL names. Holds credentials, so it has no `Debug`.
pub(crate) struct PostgresServers {
    servers: Vec<PostgresServer>,
    /// Index of the one that last took writes.
    preferred: AtomicUsize,
    is_down: AtomicBool,
    has_warned_of_fsync: AtomicBool,
}

struct PostgresServer {
    /// Host and port, for the log.
    name: String,
    options: AnyConnectOptions,
}

/// The parts of a URL, still escaped.
struct Parts<'a> {
    user_info: &'a str,
    hosts: Vec<Host>,
    database: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

/// An address, unescaped.
struct Host {
    host: String,
    port: u16,
}

impl Host {
    fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Whether what is sent there stays on this machine.
    fn is_local(&self) -> bool {
        self.is_socket()
            || self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl PostgresServers {
    /// Reads what follows `postgres://` in the URL.
    ///
    /// # Errors
    /// [`StoreError::Settings`]; the text never repeats the URL.
    pub(crate) fn parse(rest: &str) -> Result<Self, StoreError> {
        let parts = Parts::of(rest)?;
        parts.check_secrecy()?;
        let server = |host: &Host| {
            let options: AnyConnectOptions =
                parts.url_for(host).parse().map_err(|_| settings("cannot be read as a Postgres address"))?;
            Ok(PostgresServer {
                name: format!("{}:{}", host.host, host.port),
                options: options.disable_statement_logging(),
            })
        };
        let servers = parts.hosts.iter().map(server).collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self {
            servers,
            preferred: AtomicUsize::default(),
            is_down: AtomicBool::default(),
            has_warned_of_fsync: AtomicBool::default(),
        })
    }

    /// A connection to a server that takes writes. Tries the one that last did first.
    pub(crate) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = StoreError::Busy(None);
        for (index, server) in self.servers.iter().enumerate().cycle().skip(first).take(self.servers.len()) {
            let attempt = timeout(CONNECT_TIMEOUT, self.connect_to(server)).await;
            failure = match attempt {
                Ok(Ok(connection)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    if self.is_down.swap(false, Ordering::Relaxed) {
                        info!(store.server = %server.name, "the database is available again");
                    }
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => StoreError::Busy(None),
            };
            debug!(store.server = %server.name, error = %failure, "cannot connect to a database server");
        }
        // Once for each outage, not for each request.
        if !self.is_down.swap(true, Ordering::Relaxed) {
            let error = std::error::Error::source(&failure).map(ToString::to_string);
            warn!(error, "no database server of store.url takes writes");
        }
        Err(failure)
    }

    async fn connect_to(&self, server: &PostgresServer) -> Result<AnyConnection, StoreError> {
        let mut connection = server.options.connect().await?;
        let (is_standby, commits, fsync): (i64, String, String) =
            sqlx::query_as(CHECK).fetch_one(&mut connection).await?;
        if is_standby != 0 {
            let text = "the server takes no writes: it is a standby or read-only";
            return Err(StoreError::Busy(Some(Arc::new(sqlx::Error::Configuration(text.into())))));
        }
        if commits == "off" {
            // Otherwise a crash of the server could lose a commit that it has acknowledged, and the keys
            // would be handed out again.
            sqlx::raw_sql(COMMIT_TO_DISK.into_sql_str()).execute(&mut connection).await?;
        }
        if fsync == "off" && !self.has_warned_of_fsync.swap(true, Ordering::Relaxed) {
            warn!(store.server = %server.name, "the database has fsync = off: a crash may bring retrieved keys back");
        }
        Ok(connection)
    }
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Result<Self, StoreError> {
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let pair = |text: &'a str| text.split_once('=').unwrap_or((text, ""));
        let parameters: Vec<_> = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
        if let Some((name, _)) = parameters.iter().find(|(name, _)| !PARAMETERS.contains(name)) {
            return Err(settings(&format!(
                "has an unknown parameter: {} (a password goes into store.password_file)",
                name.escape_default()
            )));
        }
        let value = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let hosts = match (hosts, value("host")) {
            ("", Some(hosts)) => with_ports(hosts, value("port"))?,
            (_, Some(_)) => return Err(settings("names hosts in two places")),
            ("", None) => return Err(settings("needs a host, or the directory of a socket as ?host=/DIR")),
            (hosts, None) => hosts.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?,
        };
        Ok(Self { user_info, hosts, database, parameters })
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// A server on another machine has to prove who it is. It is sent sealed keys, and its answers decide
    /// whether a key was retrieved before. `require` and `prefer` look safe but accept any certificate. An
    /// explicit `disable` is accepted: the operator has a separate network.
    fn check_secrecy(&self) -> Result<(), StoreError> {
        let mode = self.value("sslmode");
        let is_safe = matches!(mode, Some("verify-full" | "disable"));
        match self.hosts.iter().find(|host| !host.is_local()) {
            Some(_) if !is_safe => Err(settings(
                "names a database on another machine, which needs sslmode=verify-full (and sslrootcert=FILE for a \
                 private CA); sslmode=disable only where nobody else is on that network",
            )),
            _ => Ok(()),
        }
    }

    /// The URL of one host, in the form that the driver reads.
    fn url_for(&self, host: &Host) -> String {
        let mut url = "postgres://".to_owned();
        if !self.user_info.is_empty() {
            url.push_str(self.user_info);
            url.push('@');
        }
        // The driver takes a bracketed IPv6 address for a name. As a parameter, without brackets, it works.
        let is_v6 = host.host.contains(':');
        // The driver wants a name unescaped, and a socket's directory escaped.
        let shown = match host.host.as_str() {
            _ if is_v6 => "localhost".to_owned(),
            directory if host.is_socket() => escaped(directory).to_string(),
            name => name.to_owned(),
        };
        let _ = write!(url, "{shown}:{}/{}?", host.port, self.database);
        if is_v6 {
            let _ = write!(url, "host={}&", escaped(&host.host));
        }
        if host.is_socket() && self.value("sslmode").is_none() {
            url.push_str("sslmode=disable&");
        }
        if self.value("application_name").is_none() {
            url.push_str("application_name=dqkd&");
        }
        // The operator's parameters come last, so they win.
        let _ = write!(url, "options={}", escaped(SESSION));
        for (name, value) in &self.parameters {
            if !matches!(*name, "host" | "port") {
                let _ = write!(url, "&{name}={value}");
            }
        }
        url
    }
}

fn with_ports(hosts: &str, ports: Option<&str>) -> Result<Vec<Host>, StoreError> {
    let ports: Vec<&str> = ports.map_or_else(Vec::new, |ports| ports.split(',').collect());
    let host = |(index, host): (usize, &str)| {
        let port = ports.get(index).or(ports.first()).copied();
        Ok(Host { host: unescaped(host)?, port: port_of(port)? })
    };
    hosts.split(',').enumerate().map(host).collect()
}

fn host_and_port(text: &str) -> Result<Host, StoreError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => {
            (host, Some(port.strip_prefix(':').ok_or_else(|| settings("has no port after ]"))?))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    Ok(Host { host: unescaped(host)?, port: port_of(port)? })
}

fn port_of(text: Option<&str>) -> Result<u16, StoreError> {
    match text {
        None => Ok(5432),
        Some(text) => text.parse().map_err(|_| settings("has a port that is not a number up to 65535")),
    }
}

fn unescaped(host: &str) -> Result<String, StoreError> {
    match percent_decode_str(host).decode_utf8() {
        Ok(host) if host.starts_with('/') && !host.contains('\0') => Ok(host.into_owned()),
        Ok(host) if is_name(&host) => Ok(host.into_owned()),
        _ => Err(settings("needs a host, by name or address, between commas")),
    }
}

/// A host name or an address, IPv6 without brackets.
fn is_name(host: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !host.is_empty() && host.chars().all(is_plain)
}

fn escaped(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

fn settings(what: &str) -> StoreError {
    StoreError::Settings(format!("store.url {what}"))
}
