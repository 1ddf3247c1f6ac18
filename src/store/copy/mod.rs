//! Copies a store to another database, of the same kind or the other: all live rows, or none.
//!
//! Both databases stay locked throughout, so no daemon changes the source or starts on half a target. One
//! transaction of the target holds everything. Before its commit, every row is read back and compared, and
//! every sealed key is opened. Keys stay sealed as they are.

mod tables;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kme::{BatchId, Clock, KeyId, Random, Timestamp};
use tokio::time::sleep;

use self::tables::{KEY_MATERIAL, PAGE_ROWS, Row, TABLES, Table, Value};
use super::connection::{Address, Dialect, Link, Sql, prepare_schema};
use super::error::StoreError;
use super::sealing::{KeyEncryptionKeys, Sealer};
use super::verbs::{id_bytes, unwrap_data_key};
use super::writer::commit::commit;

/// Lets a session stay idle while the other database works.
const PATIENT_SESSION: &str = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
/// Other sessions of this role in this database: most likely daemons.
const OTHER_SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()";
/// Begins a transaction during which nobody else changes the tables.
const LOCK_SOURCE: Sql = Sql {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN; LOCK TABLE data_keys, batches, keys, retrievals, ready_blocks, tombstones IN SHARE MODE",
};
/// Begins a transaction during which nobody else reads the tables.
const LOCK_TARGET: Sql = Sql {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN; \
               LOCK TABLE data_keys, batches, keys, retrievals, ready_blocks, tombstones IN ACCESS EXCLUSIVE MODE",
};
const DATA_KEY_OF_BATCH: &str = "SELECT data_key_id FROM batches WHERE batch_id = $1";

/// How long to wait until the sessions of daemons that were just stopped are gone.
const SESSIONS_WAIT: Duration = Duration::from_secs(3);

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Rows of each table, by its name.
    pub rows: Vec<(&'static str, u64)>,
    /// Sealed keys that were opened in the target.
    pub opened: u64,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, rows) in &self.rows {
            write!(f, "{rows} {name}, ")?;
        }
        write!(f, "all as in the source; all {} sealed keys open", self.opened)
    }
}

/// What a copy needs beside the two databases.
pub struct CopyParts {
    /// All KEKs that the source needs.
    pub keks: KeyEncryptionKeys,
    /// Decides what has expired; that is not copied.
    pub clock: Arc<dyn Clock>,
    /// Builds the sealer, which seals nothing here.
    pub random: Arc<dyn Random>,
}

/// Copies the store at the URL `from` to the URL `to`, which must be empty; a missing database is made.
///
/// # Errors
/// [`StoreError`]; the target is empty. After [`StoreError::Uncertain`] it has everything or nothing.
pub(crate) async fn copy(from: &str, to: &str, parts: CopyParts) -> Result<Copied, StoreError> {
    let (from, to) = (Address::parse(from)?, Address::parse(to)?);
    from.find(false)?;
    let mut source = hold(&from, "the source").await?;
    prepare_schema(&mut source, false).await?;
    to.find(true)?;
    let mut target = hold(&to, "the target").await?;
    prepare_schema(&mut target, true).await?;
    begin(&mut source, LOCK_SOURCE, "the source").await?;
    begin(&mut target, LOCK_TARGET, "the target").await?;
    let now = parts.clock.now();
    let sealer = Sealer::new(parts.keks, parts.random, now)?;
    let mut work = Work { source, target, now, sealer };
    work.check_empty().await?;
    let mut copied = Copied::default();
    for table in TABLES {
        copied.rows.push((table.name, work.copy(table).await?));
    }
    for (table, (_, rows)) in TABLES.iter().zip(&copied.rows) {
        copied.opened += work.verify(table, *rows).await?;
    }
    let Work { source, mut target, .. } = work;
    commit(&mut target)
        .await
        .map_err(|error| if error.proves_no_commit() { error } else { error.into_uncertain() })?;
    close(target).await;
    close(source).await;
    Ok(copied)
}

/// A connection to a database that nobody else uses.
async fn hold(address: &Address, what: &str) -> Result<Link, StoreError> {
    let mut link = match address.connect_alone().await {
        Err(StoreError::Busy(_)) if address.dialect() == Dialect::Sqlite => return Err(in_use(what)),
        other => other?,
    };
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(PATIENT_SESSION).execute(&mut *link).await?;
        let deadline = tokio::time::Instant::now() + SESSIONS_WAIT;
        loop {
            let others: i64 = sqlx::query_scalar(OTHER_SESSIONS).fetch_one(&mut *link).await?;
            if others == 0 {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(in_use(what));
            }
            sleep(SESSIONS_WAIT / 10).await;
        }
    }
    Ok(link)
}

fn in_use(what: &str) -> StoreError {
    StoreError::Settings(format!(
        "{what} is in use: stop every daemon that uses it and close all other connections to it, then try again"
    ))
}

async fn begin(link: &mut Link, hold: Sql, what: &str) -> Result<(), StoreError> {
    let begun = sqlx::raw_sql(link.text(hold)).execute(&mut **link).await.map_err(StoreError::from);
    match begun {
        Err(StoreError::Busy(_)) => Err(in_use(what)),
        other => other.map(drop),
    }
}

/// Ignores errors: everything that matters is committed.
async fn close(link: Link) {
    let _ = sqlx::Connection::close(link.into_inner()).await;
}

/// A copy under way.
struct Work {
    source: Link,
    target: Link,
    now: Timestamp,
    sealer: Sealer,
}

impl Work {
    async fn check_empty(&mut self) -> Result<(), StoreError> {
        for table in TABLES {
            if table.count(&mut self.target).await? > 0 {
                return Err(StoreError::Settings(format!(
                    "the target is not empty: its table {} has rows; name a new database",
                    table.name
                )));
            }
        }
        Ok(())
    }

    /// Copies the live rows of a table. Returns how many.
    async fn copy(&mut self, table: &Table) -> Result<u64, StoreError> {
        let (mut rows, mut after) = (0, None);
        loop {
            let page = table.page(&mut self.source, after.as_ref(), self.now).await?;
            let Some(last) = page.last() else { return Ok(rows) };
            after = Some(table.key_of(last));
            rows += page.len() as u64;
            table.insert(&mut self.target, &page).await?;
            if page.len() < PAGE_ROWS {
                return Ok(rows);
            }
        }
    }

    /// Compares a table of the target with the source. Returns how many sealed keys were opened.
    async fn verify(&mut self, table: &Table, rows: u64) -> Result<u64, StoreError> {
        let (mut seen, mut opened, mut after) = (0, 0, None);
        loop {
            let wanted = table.page(&mut self.source, after.as_ref(), self.now).await?;
            let found = table.page(&mut self.target, after.as_ref(), self.now).await?;
            if wanted != found {
                return Err(StoreError::corrupt(table.name, "read back from the target"));
            }
            let Some(last) = found.last() else { break };
            after = Some(table.key_of(last));
            seen += found.len() as u64;
            opened += self.check_seals(table, &found).await?;
        }
        if seen != rows || table.count(&mut self.target).await? != rows {
            return Err(StoreError::corrupt(table.name, "count of the target"));
        }
        Ok(opened)
    }

    /// Unwraps the data keys of a page or opens its sealed keys. Returns how many were opened.
    async fn check_seals(&mut self, table: &Table, page: &[Row]) -> Result<u64, StoreError> {
        match table.name {
            "data_keys" => {
                for row in page {
                    let [Value::Bytes(id), Value::Text(kek_id), Value::Bytes(wrapped), ..] = row.as_slice()
                    else {
                        return Err(StoreError::corrupt("data_keys", "unknown"));
                    };
                    unwrap_data_key(&self.sealer, id, kek_id, wrapped)?;
                }
                Ok(0)
            }
            "keys" => self.open(page).await,
            _ => Ok(0),
        }
    }

    async fn open(&mut self, page: &[Row]) -> Result<u64, StoreError> {
        let mut opened = 0;
        for row in page {
            let [Value::Bytes(key_id), Value::Bytes(batch_id), sealed, ..] = row.as_slice() else {
                return Err(StoreError::corrupt(KEY_MATERIAL, "unknown"));
            };
            // Voided keys have no material.
            let Value::Bytes(sealed) = sealed else { continue };
            let damaged = || StoreError::corrupt(KEY_MATERIAL, hex::encode(key_id));
            let data_key: Vec<u8> = sqlx::query_scalar(DATA_KEY_OF_BATCH)
                .bind(batch_id.as_slice())
                .fetch_one(&mut *self.target)
                .await?;
            let data_key = id_bytes(&data_key, "batches")?;
            let key_id = KeyId::from_bytes(id_bytes(key_id, KEY_MATERIAL)?);
            let batch_id = BatchId::from_bytes(id_bytes(batch_id, KEY_MATERIAL)?);
            self.sealer.open(&data_key, key_id, batch_id, sealed)?.ok_or_else(damaged)?;
            opened += 1;
        }
        Ok(opened)
    }
}
