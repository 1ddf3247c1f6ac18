//! From a store URL to configured connections and a current schema.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, SqlSafeStr};
use tracing::warn;

use super::error::StoreError;
use super::sql;

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read waits for a reading connection.
const READER_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 2;

/// Every schema version, oldest first. Statements of a published version never change.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "keys", include_str!("../../migrations/sqlite/0001_keys.sql")),
    (2, "ready_blocks", include_str!("../../migrations/sqlite/0002_ready_blocks.sql")),
];

/// Takes the file's path from `sqlite://PATH`, `sqlite:PATH`; PATH is absolute or relative to the working
/// directory.
///
/// # Errors
/// [`StoreError::Settings`]; the text never repeats the URL, which may hold credentials.
pub(super) fn database_file(url: &str) -> Result<PathBuf, StoreError> {
    let settings = |text: &str| Err(StoreError::Settings(text.to_owned()));
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return settings("store.url: postgres comes in a later release; use sqlite://FILE");
    }
    let Some(rest) = url.strip_prefix("sqlite:") else {
        return settings("store.url must be sqlite://FILE (postgres comes in a later release)");
    };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path == ":memory:" {
        return settings("store.url must name a file: keys in memory would not survive a restart");
    }
    if path.contains('?') {
        return settings("store.url takes no options after the file name");
    }
    let path = PathBuf::from(path);
    if path.is_dir() {
        return Err(StoreError::Settings(format!(
            "store.url: {} is a directory; name a file in it",
            path.display()
        )));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        return Err(StoreError::Settings(format!(
            "store.url: the directory {} does not exist; create it",
            parent.display()
        )));
    }
    Ok(path)
}

/// Makes the file, readable for its owner only, before SQLite would make it readable for others. SQLite
/// gives `-wal` and `-shm` the mode of the file.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    let failed = |what: &str, error: &std::io::Error| {
        StoreError::Settings(format!("{what} the database file {}: {error}", path.display()))
    };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let mode = path.metadata().map_err(|e| failed("cannot look at", &e))?.mode();
            if mode & 0o077 != 0 {
                warn!(store.file = %path.display(), "others may read the database file: chmod 600 it");
            }
            Ok(())
        }
        Err(error) => Err(failed("cannot create", &error)),
    }
}

/// How every connection is made.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("secure_delete", "ON")
        .pragma("trusted_schema", "OFF")
        .disable_statement_logging()
}

/// The connections that only read.
pub(super) fn readers(options: &SqliteConnectOptions) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(READER_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options.clone().pragma("query_only", "ON"))
}

/// Refuses a schema that this program does not know; brings an old one up to date when `migrate`.
pub(super) async fn prepare_schema(
    connection: &mut SqliteConnection,
    migrate: bool,
) -> Result<(), StoreError> {
    let newest = MIGRATIONS.last().map_or(0, |(version, _, _)| *version);
    let has_table: i64 = sqlx::query_scalar(sql::HAS_MIGRATIONS).fetch_one(&mut *connection).await?;
    let version: i64 = if has_table == 0 {
        0
    } else {
        sqlx::query_scalar(sql::SCHEMA_VERSION).fetch_one(&mut *connection).await?
    };
    if version > newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, newer than {newest}, the newest that this program \
             knows: run the dqkd that made it, or a newer one"
        )));
    }
    if migrate {
        return Ok(migrator().run_direct(None, connection, false).await?);
    }
    if version < newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, this program needs {newest}: run `dqkd migrate`"
        )));
    }
    Ok(())
}

fn migrator() -> Migrator {
    Migrator::with_migrations(
        MIGRATIONS
            .iter()
            .map(|(version, name, sql)| {
                Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlite_url_form_names_the_file() {
        for (url, path) in [
            ("sqlite://site-a.db", "site-a.db"),
            ("sqlite:site-a.db", "site-a.db"),
            ("sqlite:///tmp/a b.db", "/tmp/a b.db"),
            ("sqlite:/tmp/a.db", "/tmp/a.db"),
        ] {
            assert_eq!(database_file(url).unwrap(), Path::new(path), "{url}");
        }
    }

    #[test]
    fn unusable_urls_are_refused_without_repeating_them() {
        for (url, hint) in [
            ("postgres://u:hunter2@h/db", "later release"),
            ("mysql://u:hunter2@h/db", "sqlite://FILE"),
            ("sqlite::memory:", "restart"),
            ("sqlite://", "restart"),
            ("sqlite://a.db?mode=hunter2", "no options"),
            ("sqlite:///no/such/dir/a.db", "does not exist"),
            ("sqlite:///tmp", "is a directory"),
        ] {
            let text = database_file(url).unwrap_err().to_string();
            assert!(text.contains(hint), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn every_migration_file_is_listed_in_order() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
        let mut names: Vec<_> =
            dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let listed: Vec<_> = MIGRATIONS.iter().map(|(v, name, _)| format!("{v:04}_{name}.sql")).collect();
        assert_eq!(names, listed);
    }
}
