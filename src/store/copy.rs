//! Moves a store to another database, of the same kind or of the other: all rows that are still of use, or none.
//!
//! Both databases are held for the whole time, so that no daemon changes what is copied and none begins on half a
//! store. One transaction of the target holds everything; before it is committed, every row is read back and
//! compared, and every sealed key is opened. Material stays sealed as it is: no key is seen but for that check.

mod tables;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kme::{BatchId, Clock, KeyId, Random, Timestamp};
use tokio::time::sleep;

use self::tables::{KEY_MATERIAL, PAGE_ROWS, Row, TABLES, Table, Value};
use super::connect::Address;
use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::kek::KeyEncryptionKeys;
use super::migrate::prepare_schema;
use super::seal::{DataKeyId, Sealer};
use super::{commit, sql};

/// How long sessions of daemons that were just stopped are waited for.
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

/// What the store is sealed with, and what the time is.
pub struct CopyParts {
    /// Every KEK that the source needs.
    pub keks: KeyEncryptionKeys,
    /// What has expired is not copied.
    pub clock: Arc<dyn Clock>,
    /// For the sealer, which seals nothing here.
    pub random: Arc<dyn Random>,
}

/// Copies the store at the URL `from` to the one at `to`, which must be empty and is made when there is none.
///
/// # Errors
/// [`StoreError`]; then the target has nothing. [`StoreError::Uncertain`]: it has everything or nothing.
pub(super) async fn copy(from: &str, to: &str, parts: CopyParts) -> Result<Copied, StoreError> {
    let (from, to) = (Address::parse(from)?, Address::parse(to)?);
    from.find(false)?;
    let mut source = hold(&from, "the source").await?;
    prepare_schema(&mut source, false).await?;
    to.find(true)?;
    let mut target = hold(&to, "the target").await?;
    prepare_schema(&mut target, true).await?;
    begin(&mut source, sql::HOLD_SOURCE, "the source").await?;
    begin(&mut target, sql::HOLD_TARGET, "the target").await?;
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
    commit::commit(&mut target)
        .await
        .map_err(|error| if error.proves_no_commit() { error } else { error.into_uncertain() })?;
    close(target).await;
    close(source).await;
    Ok(copied)
}

/// A connection to a database that no daemon uses.
async fn hold(address: &Address, what: &str) -> Result<Link, StoreError> {
    let mut link = match address.connect_alone().await {
        Err(StoreError::Busy(_)) if address.dialect() == Dialect::Sqlite => return Err(in_use(what)),
        other => other?,
    };
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(sql::PATIENT_SESSION).execute(&mut *link).await?;
        let deadline = tokio::time::Instant::now() + SESSIONS_WAIT;
        loop {
            let others: i64 = sqlx::query_scalar(sql::OTHER_SESSIONS).fetch_one(&mut *link).await?;
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
        "{what} is in use: stop every daemon that uses it, and whatever else is connected to it, then try again"
    ))
}

async fn begin(link: &mut Link, hold: super::dialect::Sql, what: &str) -> Result<(), StoreError> {
    let begun = sqlx::raw_sql(link.text(hold)).execute(&mut **link).await.map_err(StoreError::from);
    match begun {
        Err(StoreError::Busy(_)) => Err(in_use(what)),
        other => other.map(drop),
    }
}

/// Whatever it says, what counts is committed.
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
            if !table.is_empty(&mut self.target).await? {
                return Err(StoreError::Settings(format!(
                    "the target is not empty: its table {} has rows; name a new database",
                    table.name
                )));
            }
        }
        Ok(())
    }

    /// Copies the rows of one table that are of use; returns how many.
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

    /// Reads a table of the target back beside the source's; returns how many sealed keys were opened.
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

    /// Unwraps the data keys of a page, opens its sealed keys.
    async fn check_seals(&mut self, table: &Table, page: &[Row]) -> Result<u64, StoreError> {
        match table.name {
            "data_keys" => {
                for row in page {
                    let [Value::Bytes(id), Value::Text(kek_id), Value::Bytes(wrapped), ..] = row.as_slice()
                    else {
                        return Err(StoreError::corrupt("data_keys", "unknown"));
                    };
                    let damaged = || StoreError::corrupt("data_keys", hex::encode(id));
                    let id: DataKeyId = id.as_slice().try_into().map_err(|_| damaged())?;
                    if !self.sealer.learn(id, kek_id, wrapped)? {
                        return Err(damaged());
                    }
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
            let data_key: Vec<u8> = sqlx::query_scalar(sql::DATA_KEY_OF_BATCH)
                .bind(batch_id.as_slice())
                .fetch_one(&mut *self.target)
                .await?;
            let data_key: DataKeyId = data_key.as_slice().try_into().map_err(|_| damaged())?;
            let key_id: [u8; 16] = key_id.as_slice().try_into().map_err(|_| damaged())?;
            let batch_id: [u8; 16] = batch_id.as_slice().try_into().map_err(|_| damaged())?;
            let (key_id, batch_id) = (KeyId::from_bytes(key_id), BatchId::from_bytes(batch_id));
            self.sealer.open(&data_key, key_id, batch_id, sealed)?.ok_or_else(damaged)?;
            opened += 1;
        }
        Ok(opened)
    }
}
