//! Errors of the store: one variant for each way in which a caller can react. They never hold key material.

use std::sync::Arc;

use sqlx::error::DatabaseError as _;
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use super::sealing::SealError;

/// A failure of the store. Cheap to clone, because every caller that shared a failed commit gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left. Nothing was changed; works again when space is freed.
    #[error("the key store has no space left")]
    Full(#[source] Arc<sqlx::Error>),
    /// The database was out of reach or locked, or the queue was full, for too long. Try again.
    #[error("the key store is busy")]
    Busy(#[source] Option<Arc<sqlx::Error>>),
    /// The connection broke during a commit, and the store could not find out in time whether the commit took
    /// place. It tries nothing again. Repeating the call shows what happened, except for a retrieval, which
    /// may have been used up.
    #[error(
        "the key store lost its database during a commit and does not know whether the commit took place"
    )]
    Uncertain(#[source] Option<Arc<sqlx::Error>>),
    /// The database can be read but not written. An operator must act.
    #[error(
        "the key store is read-only: check owner and mode of the database file, its -wal and -shm, and their directory"
    )]
    ReadOnly(#[source] Arc<sqlx::Error>),
    /// Stored data is not what was written. An operator must look.
    #[error("the key store is damaged: table {table}, row {row}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's ID as text, or a hint where the ID is not known. Never its content.
        row: String,
    },
    /// The schema does not fit this program. The text says what to do.
    #[error("{0}")]
    Schema(String),
    /// Sealing or opening failed: a KEK or random bytes are missing.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The settings cannot work. The text says which and why, without credentials.
    #[error("{0}")]
    Settings(String),
    /// The caller broke a rule of this interface: a defect in the program.
    #[error("the key store was misused: {0}")]
    Misuse(&'static str),
    /// The store was closed.
    #[error("the key store is closed")]
    Closed,
    /// Anything else that the database reports.
    #[error("the key store failed")]
    Other(#[source] Arc<sqlx::Error>),
}

/// Why [`super::Store::retrieve`] returned no keys. Nothing was used up, except perhaps with
/// [`StoreError::Uncertain`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum RetrieveError {
    /// A requested key exists and the caller holds no retrieval of it (401, ETSI GS QKD 014 clause 5.4).
    #[error("the caller is not named by a requested key")]
    NotEntitled,
    /// A requested key cannot be returned: unknown, expired, voided or retrieved (400, clause 6.4).
    #[error("a requested key is not available")]
    NotFound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// Result codes of SQLite (sqlite.org/rescode.html), which never change.
const SQLITE_ERROR: i32 = 1;
const SQLITE_READONLY: i32 = 8;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;
const SQLITE_IOERR_SHMSIZE: i32 = 4874;

impl StoreError {
    /// One sentence that a client may read.
    pub fn public_message(&self) -> &'static str {
        match self {
            Self::Full(_) => "the key store has no space left",
            Self::Busy(_) => "the key store is busy",
            Self::Uncertain(_) => "the key store lost its database while it answered",
            Self::ReadOnly(_) | Self::Closed => "the key store takes no changes now",
            Self::Corrupt { .. }
            | Self::Schema(_)
            | Self::Seal(_)
            | Self::Settings(_)
            | Self::Misuse(_)
            | Self::Other(_) => "the key store failed",
        }
    }

    /// Whether running the jobs of a transaction one by one is pointless or forbidden.
    pub(super) fn hits_every_job(&self) -> bool {
        match self {
            Self::Busy(Some(error)) => !matches!(sqlstate(error).as_deref(), Some(LOCK_TIMEOUT | CANCELED)),
            Self::Busy(None) | Self::ReadOnly(_) | Self::Closed | Self::Uncertain(_) => true,
            _ => false,
        }
    }

    /// Whether the transaction may succeed when it runs again: another one was in its way (Postgres).
    pub(super) fn passes_with_a_rerun(&self) -> bool {
        const REASONS: &[&str] = &["40001", "40P01", "23505", "23503"];
        self.database_error().and_then(sqlstate).is_some_and(|code| REASONS.contains(&code.as_str()))
    }

    /// Whether the connection that reported this can no longer be used.
    pub(super) fn ends_the_connection(&self) -> bool {
        match self.database_error() {
            Some(
                sqlx::Error::Io(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::WorkerCrashed,
            ) => true,
            Some(error) => sqlstate(error).is_some_and(|code| is_outage(&code)),
            None => matches!(self, Self::Busy(None)),
        }
    }

    /// The same failure, for a COMMIT that may have taken place.
    pub(super) fn into_uncertain(self) -> Self {
        match self {
            Self::Full(error) | Self::ReadOnly(error) | Self::Other(error) => Self::Uncertain(Some(error)),
            Self::Busy(error) => Self::Uncertain(error),
            _ => Self::Uncertain(None),
        }
    }

    /// Whether this error of a COMMIT proves that nothing was committed.
    pub(super) fn proves_no_commit(&self) -> bool {
        let Some(error) = self.database_error() else { return false };
        match (sqlstate(error), sqlite_code(error)) {
            // After any other error of Postgres, the commit mark shows what happened.
            (Some(code), _) => matches!(code.get(..2), Some("23" | "25" | "40" | "55")) && !is_outage(&code),
            (None, Some(code)) => matches!(
                code & 0xff,
                SQLITE_ERROR
                    | SQLITE_BUSY
                    | SQLITE_LOCKED
                    | SQLITE_READONLY
                    | SQLITE_FULL
                    | SQLITE_CONSTRAINT
            ),
            (None, None) => false,
        }
    }

    pub(super) fn corrupt(table: &'static str, row: impl std::fmt::Display) -> Self {
        Self::Corrupt { table, row: row.to_string() }
    }

    /// Whether it is about rows that do not open, not about a statement that failed.
    pub(super) fn is_about_rows(&self) -> bool {
        match self {
            Self::Corrupt { table, .. } => *table != DATABASE,
            Self::Seal(_) => true,
            _ => false,
        }
    }

    fn database_error(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Full(error) | Self::ReadOnly(error) | Self::Other(error) => Some(error),
            Self::Busy(error) | Self::Uncertain(error) => error.as_deref(),
            _ => None,
        }
    }
}

/// Stands for the table when the database itself reports damage.
const DATABASE: &str = "(database file)";

// Error codes of Postgres (appendix A of its manual).
const LOCK_TIMEOUT: &str = "55P03";
const CANCELED: &str = "57014";
const DISK_FULL: &str = "53100";
const READ_ONLY_TRANSACTION: &str = "25006";

/// The code that Postgres gave an error.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code().to_owned())
}

/// The extended code that SQLite gave an error.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let error = error.as_database_error()?.try_downcast_ref::<SqliteError>()?;
    error.code().and_then(|code| code.parse().ok())
}

/// Whether the server ends the session, accepts no new ones, or is a standby.
fn is_outage(code: &str) -> bool {
    code.starts_with("08")
        || matches!(
            code,
            "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "53300" | "25P03" | READ_ONLY_TRANSACTION
        )
}

fn from_postgres(code: &str, error: Arc<sqlx::Error>) -> StoreError {
    match code {
        DISK_FULL => StoreError::Full(error),
        "XX001" | "XX002" => StoreError::corrupt(DATABASE, "unknown"),
        LOCK_TIMEOUT | CANCELED => StoreError::Busy(Some(error)),
        code if is_outage(code) => StoreError::Busy(Some(error)),
        _ => StoreError::Other(error),
    }
}

fn from_sqlite(code: i32, error: Arc<sqlx::Error>) -> StoreError {
    // SQLite reports ENOSPC as SQLITE_FULL for the database and its log, but not for the shared index.
    if code == SQLITE_IOERR_SHMSIZE {
        return StoreError::Full(error);
    }
    match code & 0xff {
        SQLITE_FULL => StoreError::Full(error),
        SQLITE_BUSY | SQLITE_LOCKED => StoreError::Busy(Some(error)),
        SQLITE_READONLY => StoreError::ReadOnly(error),
        SQLITE_CORRUPT | SQLITE_NOTADB => StoreError::corrupt(DATABASE, "unknown"),
        _ => StoreError::Other(error),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let (postgres, sqlite) = (sqlstate(&error), sqlite_code(&error));
        let error = Arc::new(error);
        match (postgres, sqlite, &*error) {
            (Some(code), _, _) => from_postgres(&code, error),
            (None, Some(code), _) => from_sqlite(code, error),
            // The server is out of reach or ended the connection in the middle.
            (None, None, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => Self::Busy(Some(error)),
            _ => Self::Other(error),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            other => Self::Schema(format!("the database schema cannot be used: {other}")),
        }
    }
}
