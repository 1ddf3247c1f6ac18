//! Postgres: from a URL to the servers that it names, and connections to them.
//!
//! The URL is libpq's and may name several hosts. They are tried in order; only one that takes writes is
//! used. Every wait for a server is bounded: by the server (`statement_timeout` and others, set for each
//! session) and here.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::AnyConnection;
use sqlx::any::AnyConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, SqlSafeStr};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::store::error::StoreError;

/// Longest time for a server to accept a connection and say whether it takes writes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of each session. The timeouts bound every wait; the server ends a session that goes silent inside
/// a transaction, which frees its locks. While a statement runs or waits, the server looks each second whether
/// its daemon is still there: else the statement of a killed daemon could wait for minutes with the locks that it
/// has ([`super::BE_PATIENT`]). None of these ends a statement whose answer nobody takes; `tcp_user_timeout` does (not
/// on a socket of this machine). The planner may use only indexes: the statistics of tables that change this fast are
/// always wrong (docs/lab/query-plans.md shows the plans), and a plan for the very values of a statement's
/// parameters costs time and is no better.
const SESSION: &str = "-c statement_timeout=5000 -c lock_timeout=3000 \
     -c idle_in_transaction_session_timeout=5000 -c client_connection_check_interval=1000 \
     -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 \
     -c tcp_user_timeout=10000 -c default_transaction_isolation=read\\ committed -c jit=off \
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

impl PostgresServers {
    /// Reads what follows `postgres://` in the URL.
    ///
    /// # Errors
    /// [`StoreError::Settings`]; the text never repeats the URL.
    pub(crate) fn parse(rest: &str) -> Result<Self, StoreError> {
        if rest.contains('#') {
            // For the driver it would end the URL, and with it the session's settings.
            return Err(settings("has a #: write it as %23"));
        }
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let pairs = query.split('&').filter(|text| !text.is_empty());
        let parameters: Vec<(&str, &str)> =
            pairs.map(|text| text.split_once('=').unwrap_or((text, ""))).collect();
        if let Some((name, _)) = parameters.iter().find(|(name, _)| !PARAMETERS.contains(name)) {
            return Err(settings(&format!(
                "has an unknown parameter: {} (a password goes into store.password_file)",
                name.escape_default()
            )));
        }
        let value = |name| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let hosts = match (hosts, value("host")) {
            ("", Some(host)) if host.contains(',') => {
                return Err(settings(
                    "names several hosts as a parameter: put them before the database's name",
                ));
            }
            // The driver wants some host there; the parameter wins.
            ("", Some(_)) => "localhost",
            (_, Some(_)) => return Err(settings("names hosts in two places")),
            (hosts, None) => hosts,
        };
        let server = |host: &str| {
            let url = url_of(user_info, host, database, query)?;
            PostgresServer::of(&url, value("sslmode").is_some())
        };
        let servers = hosts.split(',').map(server).collect::<Result<Vec<_>, _>>()?;
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

/// The URL of one server, in the form that the driver reads.
fn url_of(user_info: &str, host: &str, database: &str, query: &str) -> Result<String, StoreError> {
    let user_info = if user_info.is_empty() { String::new() } else { format!("{user_info}@") };
    // The driver takes a bracketed IPv6 address for a name. As a parameter, without brackets, it works.
    let (host, v6) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (format!("localhost{port}"), format!("&host={address}")),
        None if host.is_empty() => {
            return Err(settings("needs a host between commas, or the directory of a socket as ?host=/DIR"));
        }
        None => (host.to_owned(), String::new()),
    };
    // The operator's parameters come last, so they win.
    let session = utf8_percent_encode(SESSION, NON_ALPHANUMERIC);
    Ok(format!("postgres://{user_info}{host}/{database}?application_name=dqkd&options={session}{v6}&{query}"))
}

impl PostgresServer {
    /// Reads the URL of one server.
    fn of(url: &str, says_sslmode: bool) -> Result<Self, StoreError> {
        let unreadable = |_| settings("cannot be read as a Postgres address");
        let read: PgConnectOptions = url.parse().map_err(unreadable)?;
        // A server on another machine has to prove who it is. It is sent sealed keys, and its answers decide
        // whether a key was retrieved before. `require` and `prefer` look safe but accept any certificate. An
        // explicit `disable` is accepted: the operator has a separate network.
        let is_safe =
            says_sslmode && matches!(read.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::Disable);
        if !is_safe && !is_local(&read) {
            return Err(settings(
                "names a database on another machine, which needs sslmode=verify-full (and sslrootcert=FILE for a \
                 private CA); sslmode=disable only where nobody else is on that network",
            ));
        }
        let options: AnyConnectOptions = url.parse().map_err(unreadable)?;
        let host = read.get_socket().map_or(read.get_host().into(), |directory| directory.to_string_lossy());
        let name = format!("{host}:{}", read.get_port());
        Ok(Self { name, options: options.disable_statement_logging() })
    }
}

/// Whether what is sent there stays on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some()
        || options.get_host() == "localhost"
        || options.get_host().parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn settings(what: &str) -> StoreError {
    StoreError::Settings(format!("store.url {what}"))
}
