//! What can go wrong in the store, sorted by what the caller does next. Never holds key material.

use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::seal::SealError;

/// A failure of the store itself. Cheap to clone: one failed commit answers every caller that shared it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left; nothing was changed. Goes away when space is freed.
    #[error("the key store has no space left")]
    Full(#[source] Arc<sqlx::Error>),
    /// The database stayed locked, or the writer's queue stayed full, past the time limit. Try again.
    #[error("the key store is busy")]
    Busy(#[source] Option<Arc<sqlx::Error>>),
    /// The database may be read but not written; an operator must change that.
    #[error(
        "the key store is read-only: check owner and mode of the database file, its -wal and -shm, and their directory"
    )]
    ReadOnly(#[source] Arc<sqlx::Error>),
    /// Stored data is not what was written; an operator must look.
    #[error("the key store is damaged: table {table}, row {row}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's ID in text form, or what is known instead of it. Never its content.
        row: String,
    },
    /// The database's schema does not fit this program; the text says what to do.
    #[error("{0}")]
    Schema(String),
    /// Sealing or opening failed for want of a key or of randomness.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The settings cannot work; the text says which and why, without credentials.
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

/// Why [`super::Store::retrieve`] returned no keys. Nothing was consumed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RetrieveError {
    /// A requested key exists and the caller holds no retrieval of it (401, ETSI GS QKD 014 clause 5.4).
    #[error("the caller is not named by a requested key")]
    NotEntitled,
    /// A requested key cannot be returned: unknown, expired, voided or retrieved (400, clause 6.4).
    #[error("a requested key is not here")]
    NotFound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// Result codes of SQLite (sqlite.org/rescode.html), stable by its promise.
const SQLITE_READONLY: i32 = 8;
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
            Self::ReadOnly(_) | Self::Closed => "the key store takes no changes now",
            Self::Corrupt { .. }
            | Self::Schema(_)
            | Self::Seal(_)
            | Self::Settings(_)
            | Self::Misuse(_)
            | Self::Other(_) => "the key store failed",
        }
    }

    /// Whether every other job of the same commit would meet the same failure.
    pub(super) fn hits_every_job(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::ReadOnly(_) | Self::Closed)
    }

    pub(super) fn corrupt(table: &'static str, row: impl std::fmt::Display) -> Self {
        Self::Corrupt { table, row: row.to_string() }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code: Option<i32> =
            error.as_database_error().and_then(DatabaseError::code).and_then(|code| code.parse().ok());
        let timed_out = matches!(error, sqlx::Error::PoolTimedOut);
        let closed = matches!(error, sqlx::Error::PoolClosed);
        let error = Arc::new(error);
        match code {
            _ if timed_out => Self::Busy(Some(error)),
            _ if closed => Self::Closed,
            // For the database and its log SQLite turns ENOSPC into SQLITE_FULL; for the shared index it does not.
            Some(SQLITE_IOERR_SHMSIZE) => Self::Full(error),
            Some(extended) => match extended & 0xff {
                SQLITE_FULL => Self::Full(error),
                SQLITE_BUSY | SQLITE_LOCKED => Self::Busy(Some(error)),
                SQLITE_READONLY => Self::ReadOnly(error),
                SQLITE_CORRUPT | SQLITE_NOTADB => Self::corrupt("(database file)", "unknown"),
                _ => Self::Other(error),
            },
            None => Self::Other(error),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            MigrateError::VersionMissing(version) => Self::Schema(format!(
                "the database has schema version {version}, which this program does not know: \
                 run the dqkd that made it, or a newer one"
            )),
            other => Self::Schema(format!("the database schema cannot be used: {other}")),
        }
    }
}
