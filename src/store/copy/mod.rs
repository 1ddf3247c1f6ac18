//! Copies a store to another database, of the same kind or the other: all live rows, or none.
//!
//! Both databases stay locked throughout, so no daemon changes the source or starts on half a target. One
//! transaction of the target holds everything. Before its commit, every row is read back and compared, and
//! every sealed key is opened. Keys stay sealed as they are.

mod tables;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kme::{BatchId, Clock, Random, Timestamp};
use tokio::time::sleep;

use self::tables::{PAGE_ROWS, RECORDS, Row, TABLES, Table, Value};
use super::connection::{Address, Dialect, Link, Sql, prepare_schema};
use super::error::StoreError;
use super::record::Record;
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
    postgres: "BEGIN; LOCK TABLE data_keys, records, tombstones IN SHARE MODE",
};
/// Begins a transaction during which nobody else reads the tables.
const LOCK_TARGET: Sql = Sql {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN; LOCK TABLE data_keys, records, tombstones IN ACCESS EXCLUSIVE MODE",
};
/// Whose store it is.
const KME: &str = "SELECT kme FROM data_keys ORDER BY created_at_ms DESC LIMIT 1";
/// If it has no keys, it is nobody's.
const NOBODY: &str = "nobody";

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
    let kme: Option<String> = sqlx::query_scalar(KME).fetch_optional(&mut *source).await?;
    let kme = kme.as_deref().unwrap_or(NOBODY).parse();
    let kme = kme.map_err(|_| StoreError::corrupt("data_keys", "name of the KME"))?;
    let sealer = Sealer::new(parts.keks, kme, parts.random, now)?;
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
            opened += self.check_seals(table, &found)?;
        }
        if seen != rows || table.count(&mut self.target).await? != rows {
            return Err(StoreError::corrupt(table.name, "count of the target"));
        }
        Ok(opened)
    }

    /// Unwraps the data keys of a page or opens its sealed keys. Returns how many were opened.
    fn check_seals(&self, table: &Table, page: &[Row]) -> Result<u64, StoreError> {
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
            RECORDS => self.open(page),
            _ => Ok(0),
        }
    }

    /// Opens everything that is sealed in a page of records.
    fn open(&self, page: &[Row]) -> Result<u64, StoreError> {
        let mut opened = 0;
        for row in page {
            let [Value::Bytes(batch_id), Value::Bytes(data_key), .., header, state, slots] = row.as_slice()
            else {
                return Err(StoreError::corrupt(RECORDS, "unknown"));
            };
            let batch_id = BatchId::from_bytes(id_bytes(batch_id, RECORDS)?);
            let damaged = || StoreError::corrupt(RECORDS, batch_id);
            let (Value::Bytes(header), Value::Bytes(state), Value::Bytes(slots)) = (header, state, slots)
            else {
                return Err(damaged());
            };
            let record = Record::open(batch_id, data_key, header, state, slots.clone(), &self.sealer)?;
            let record = record.ok_or_else(damaged)?;
            for slot in 0..record.header.key_ids.len() {
                if record.state.of(slot).has_material() {
                    record.key(slot)?.ok_or_else(damaged)?;
                    opened += 1;
                }
            }
        }
        Ok(opened)
    }
}
