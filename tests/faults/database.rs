//! The database of one site, on a file system of its own if possible, and the faults that may hit it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use testkit::PATIENCE;
use testkit::postgres::{Stop, TestPostgres};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::disk::Disk;

/// The daemons' role, which is no superuser, and the name of their database.
const ROLE: &str = "kme";

/// Fields are dropped in this order: a server ends before its disk.
pub(crate) struct Database {
    kind: Kind,
    pub(crate) disk: Option<Disk>,
    /// Held while a fault acts on the database.
    turn: Mutex<()>,
}

enum Kind {
    Sqlite(PathBuf),
    Postgres(Arc<TestPostgres>),
}

impl Database {
    /// A file of SQLite: `file`, or on the disk.
    pub(crate) fn sqlite(file: PathBuf, disk: Option<Disk>) -> Self {
        let file = disk.as_ref().map_or(file, Disk::database);
        Self { kind: Kind::Sqlite(file), disk, turn: Mutex::default() }
    }

    /// A server of Postgres with its files on the disk, or in the folder of the network.
    pub(crate) fn postgres(folder: &Path, disk: Option<Disk>) -> Self {
        let folder = disk.as_ref().map_or(folder, Disk::folder);
        let server = TestPostgres::private_at(&folder.join("postgres"));
        let role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", TestPostgres::PASSWORD);
        server.sql("postgres", &[&role, &format!("CREATE DATABASE {ROLE} OWNER {ROLE} TEMPLATE template0")]);
        Self { kind: Kind::Postgres(Arc::new(server)), disk, turn: Mutex::default() }
    }

    /// The daemons' `store.url`: with a `link`, Postgres through that with TLS; otherwise through its socket.
    pub(crate) fn url(&self, link: Option<SocketAddr>) -> String {
        match &self.kind {
            Kind::Sqlite(file) => format!("sqlite://{}", file.display()),
            Kind::Postgres(server) => {
                let url = match link {
                    Some(link) => {
                        let (from, to) = (format!(":{}/", server.port()), format!(":{}/", link.port()));
                        server.tls_url(ROLE).replacen(&from, &to, 1)
                    }
                    None => server.socket_url(ROLE),
                };
                url.replacen(&format!("//{}", TestPostgres::USER), &format!("//{ROLE}"), 1)
            }
        }
    }

    /// The port of a server.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let Kind::Postgres(server) = &self.kind else { return None };
        Some(SocketAddr::from(([127, 0, 0, 1], server.port())))
    }

    /// Copies its content and a server's log to `folder`. The keys in it are sealed.
    pub(crate) fn keep(&self, folder: &Path, name: &str) {
        match &self.kind {
            Kind::Sqlite(file) => {
                for ending in ["", "-wal"] {
                    let to = folder.join(format!("{name}.db{ending}"));
                    let _ = std::fs::copy(format!("{}{ending}", file.display()), to);
                }
            }
            Kind::Postgres(server) => {
                std::fs::write(folder.join(format!("{name}.log")), server.log()).unwrap();
                let dump = server.dump(ROLE).unwrap_or_else(|error| error);
                std::fs::write(folder.join(format!("{name}.sql")), dump).unwrap();
            }
        }
    }

    /// Ends a fault of its disk, if any.
    pub(crate) fn heal(&self) {
        let Some(disk) = &self.disk else { return };
        disk.free();
        if let Kind::Sqlite(_) = &self.kind {
            disk.set_read_only(false).unwrap();
        }
    }

    pub(crate) async fn is_full(&self, lasts: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let disk = self.disk.as_ref().ok_or("no disk of its own")?;
        let filled = disk.fill();
        sleep(lasts).await;
        disk.free();
        // A server that cannot write its log ends, and must be started again.
        if let Kind::Postgres(server) = &self.kind {
            start(server).await?;
        }
        filled
    }

    /// The database takes no writes.
    pub(crate) async fn is_read_only(&self, lasts: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        match &self.kind {
            Kind::Sqlite(_) => {
                let disk = self.disk.as_ref().ok_or("no disk of its own")?;
                let set = disk.set_read_only(true);
                sleep(lasts).await;
                disk.set_read_only(false).and(set)
            }
            Kind::Postgres(server) => {
                let reload = "SELECT pg_reload_conf()";
                let set = "ALTER SYSTEM SET default_transaction_read_only = on";
                sql(server, &[set, reload]).await?;
                sleep(lasts).await;
                sql(server, &["ALTER SYSTEM RESET default_transaction_read_only", reload]).await
            }
        }
    }

    /// Somebody else holds a lock that a writer needs, as a backup program or an operator's shell might.
    pub(crate) async fn is_locked(&self, lasts: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        match &self.kind {
            Kind::Sqlite(file) => lock(file, lasts).await.map_err(|error| error.to_string()),
            Kind::Postgres(server) => {
                let (server, secs) = (Arc::clone(server), lasts.as_secs_f64());
                let lock = format!("BEGIN; LOCK TABLE records; SELECT pg_sleep({secs}); COMMIT");
                spawn_blocking(move || server.try_sql(ROLE, &[&lock])).await.unwrap().map(drop)
            }
        }
    }

    /// The server stops, and starts again after `pause`.
    pub(crate) async fn restarts(&self, how: Stop, pause: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let server = self.server()?;
        let stopping = Arc::clone(server);
        let stopped = spawn_blocking(move || stopping.stop(how)).await.unwrap();
        sleep(pause).await;
        start(server).await.and(stopped)
    }

    /// The server does nothing, and its connections stay open.
    pub(crate) async fn is_frozen(&self, lasts: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let server = self.server()?;
        server.signal_all(Signal::STOP);
        sleep(lasts).await;
        server.signal_all(Signal::CONT);
        Ok(())
    }

    /// All connections end, and no new one is possible.
    pub(crate) async fn is_exhausted(&self, lasts: Duration) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let server = self.server()?;
        let limit = |count: i32| format!("ALTER ROLE {ROLE} CONNECTION LIMIT {count}");
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'");
        sql(server, &[&limit(0), &end]).await?;
        sleep(lasts).await;
        sql(server, &[&limit(-1)]).await
    }

    fn server(&self) -> Result<&Arc<TestPostgres>, String> {
        let Kind::Postgres(server) = &self.kind else { return Err("SQLite has no server".to_owned()) };
        Ok(server)
    }
}

async fn sql(server: &Arc<TestPostgres>, statements: &[&str]) -> Result<(), String> {
    let server = Arc::clone(server);
    let statements: Vec<String> = statements.iter().map(|&text| text.to_owned()).collect();
    let run = move || {
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        server.try_sql("postgres", &statements).map(drop)
    };
    spawn_blocking(run).await.unwrap()
}

/// Starts a server until it answers, as a service manager would.
async fn start(server: &Arc<TestPostgres>) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let failure = match sql(server, &["SELECT 1"]).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > until {
            return Err(format!("Postgres does not come back: {failure}\n{}", server.log()));
        }
        let starting = Arc::clone(server);
        // It may be recovering already.
        let _ = spawn_blocking(move || starting.start()).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
}

async fn lock(file: &Path, lasts: Duration) -> Result<(), sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(2));
    let mut connection = options.connect().await?;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
    sleep(lasts).await;
    sqlx::query("ROLLBACK").execute(&mut connection).await?;
    connection.close().await
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    #[ignore = "takes half a minute; tests/run.sh runs it"]
    async fn every_fault_of_postgres_is_felt_and_ends_with_a_server_that_kept_its_rows() {
        let folder = TempDir::new().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let at = folder.path().join("disk");
        let disk = Disk::mount(&at.with_extension("ext4"), &at);
        if let Err(reason) = &disk {
            println!("NO FULL DISK: no file system could be mounted: {reason}");
        }
        let database = Arc::new(Database::postgres(folder.path(), disk.ok()));
        let server = Arc::clone(database.server().unwrap());
        let url = database.url(None);
        server.sql(ROLE, &["CREATE TABLE records (n INT)", &format!("GRANT ALL ON records TO {ROLE}")]);
        let insert = || {
            let (server, url) = (Arc::clone(&server), url.clone());
            let insert = "SET statement_timeout = 500; INSERT INTO records SELECT generate_series(1, 5000)";
            spawn_blocking(move || server.try_sql(&url, &[insert]))
        };
        insert().await.unwrap().unwrap();
        let lasts = Duration::from_millis(1200);
        for kind in 0..7 {
            if kind == 0 && database.disk.is_none() {
                continue;
            }
            let database = Arc::clone(&database);
            let fault = tokio::spawn(async move {
                match kind {
                    0 => database.is_full(lasts).await,
                    1 => database.is_read_only(lasts).await,
                    2 => database.is_locked(lasts).await,
                    3 => database.restarts(Stop::Fast, lasts).await,
                    4 => database.restarts(Stop::Kill, lasts).await,
                    5 => database.restarts(Stop::Immediate, lasts).await,
                    _ => database.is_exhausted(lasts).await,
                }
            });
            let mut was_felt = false;
            while !fault.is_finished() {
                was_felt |= insert().await.unwrap().is_err();
            }
            fault.await.unwrap().unwrap();
            assert!(was_felt, "fault {kind}");
            insert().await.unwrap().unwrap_or_else(|error| panic!("after fault {kind}: {error}"));
        }
        let freezing = Arc::clone(&database);
        let frozen = tokio::spawn(async move { freezing.is_frozen(lasts).await });
        sleep(lasts / 4).await;
        let started = Instant::now();
        insert().await.unwrap().unwrap();
        assert!(started.elapsed() > lasts / 4, "it waited for the server");
        frozen.await.unwrap().unwrap();
        let count: u64 = server.sql(ROLE, &["SELECT count(*) FROM records"]).parse().unwrap();
        assert!(count >= 8 * 5000 && count.is_multiple_of(5000), "{count}");
    }
}
