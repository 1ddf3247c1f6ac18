//! Copies a store to another database, of the same kind or the other: all live rows, or none.
//!
//! Both databases stay locked throughout, so no daemon changes the source or starts on half a target. One
//! transaction of the target holds everything. Before its commit, every row is read back and compared, and
//! every sealed key is opened. Keys stay sealed as they are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use kme::{BatchId, OsRandom, Timestamp};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};
use tokio::time::{Instant, sleep};

use super::Store;
use super::connection::{Address, Dialect, Link, Sql, prepare_schema};
use super::error::StoreError;
use super::record::{Record, TABLE as RECORDS};
use super::sealing::{KeyEncryptionKeys, Sealer};
use super::verbs::{id_bytes, unwrap_data_key};
use super::writer::commit::commit_or_uncertain;

/// Lets statements take long, and a session stay idle while the other database works.
const PATIENT_SESSION: &str = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
     SET tcp_user_timeout = 0";
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

const DATA_KEYS: &str = "data_keys";
const TOMBSTONES: &str = "tombstones";

/// One table: its columns by their type.
struct Table {
    name: &'static str,
    bytes: &'static [&'static str],
    texts: &'static [&'static str],
    numbers: &'static [&'static str],
    /// Which rows are live at the time `$1`.
    live: &'static str,
    /// The primary key. Text is ordered by its bytes; other collations differ between databases.
    order: Sql,
}

/// In the order of their references. Not `commit_marks`, which belong to the writers of one database.
const TABLES: [Table; 3] = [
    Table {
        name: DATA_KEYS,
        bytes: &["data_key_id", "wrapped"],
        texts: &["kek_id", "kme"],
        numbers: &["created_at_ms"],
        live: "EXISTS (SELECT 1 FROM records r WHERE r.data_key_id = t.data_key_id AND r.expires_at_ms > $1)",
        order: Sql::same("data_key_id"),
    },
    Table {
        name: RECORDS,
        bytes: &["batch_id", "data_key_id", "header", "state", "slots"],
        texts: &["source_kme", "master_sae", "recipient"],
        numbers: &[
            "prefix",
            "key_count",
            "key_bytes",
            "expires_at_ms",
            "ready_keys",
            "ready_until_ms",
            "erase_at_ms",
        ],
        live: "expires_at_ms > $1",
        order: Sql::same("batch_id"),
    },
    Table {
        name: TOMBSTONES,
        bytes: &["batch_id"],
        texts: &["source_kme"],
        numbers: &["expires_at_ms"],
        live: "expires_at_ms > $1",
        order: Sql { sqlite: "batch_id, source_kme", postgres: "batch_id, source_kme COLLATE \"C\"" },
    },
];

/// One row, in the order of its table's columns.
#[derive(PartialEq, Eq)]
struct Row {
    bytes: Vec<Vec<u8>>,
    texts: Vec<Option<String>>,
    numbers: Vec<Option<i64>>,
}

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

impl Store {
    /// Copies what is live at `now` from the store at the URL `from` to the URL `to`, which must be empty; a
    /// missing database is made. `keks` are all that the source needs. No daemon may use either of them during
    /// the copy, nor `from` afterwards: its keys would be handed out twice.
    ///
    /// # Errors
    /// [`StoreError`]; the target is empty. After [`StoreError::Uncertain`] it has everything or nothing.
    pub async fn copy(
        from: &str,
        to: &str,
        keks: KeyEncryptionKeys,
        now: Timestamp,
    ) -> Result<Copied, StoreError> {
        let (from, to) = (Address::parse(from)?, Address::parse(to)?);
        from.find(false)?;
        let mut source = hold(&from, "the source").await?;
        prepare_schema(&mut source, false).await?;
        to.find(true)?;
        let mut target = hold(&to, "the target").await?;
        prepare_schema(&mut target, true).await?;
        begin(&mut source, LOCK_SOURCE, "the source").await?;
        begin(&mut target, LOCK_TARGET, "the target").await?;
        let kme: Option<String> = sqlx::query_scalar(KME).fetch_optional(&mut *source).await?;
        let kme = kme.as_deref().unwrap_or(NOBODY).parse();
        let kme = kme.map_err(|_| StoreError::corrupt(DATA_KEYS, "name of the KME"))?;
        let sealer = Sealer::new(keks, kme, Arc::new(OsRandom), now)?;
        for table in &TABLES {
            table.check_empty(&mut target).await?;
        }
        let mut copied = Copied::default();
        for table in &TABLES {
            copied.rows.push((table.name, table.copy(&mut source, &mut target, now).await?));
        }
        for table in &TABLES {
            copied.opened += table.verify(&mut source, &mut target, now, &sealer).await?;
        }
        commit_or_uncertain(&mut target).await?;
        for link in [target, source] {
            // Everything that matters is committed.
            let _ = sqlx::Connection::close(link.into_inner()).await;
        }
        Ok(copied)
    }
}

/// A connection to a database that nobody else uses.
async fn hold(address: &Address, what: &str) -> Result<Link, StoreError> {
    let mut link = match address.connect_alone().await {
        Err(StoreError::Busy(_)) if address.dialect() == Dialect::Sqlite => return Err(in_use(what)),
        other => other?,
    };
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(PATIENT_SESSION).execute(&mut *link).await?;
        let deadline = Instant::now() + SESSIONS_WAIT;
        while sqlx::query_scalar::<_, i64>(OTHER_SESSIONS).fetch_one(&mut *link).await? > 0 {
            if Instant::now() >= deadline {
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

impl Table {
    async fn check_empty(&self, link: &mut Link) -> Result<(), StoreError> {
        let text = format!("SELECT 1 FROM {} LIMIT 1", self.name);
        match sqlx::query(AssertSqlSafe(text)).fetch_optional(&mut **link).await? {
            None => Ok(()),
            Some(_) => Err(StoreError::Settings(format!(
                "the target is not empty: its table {} has rows; name a new database",
                self.name
            ))),
        }
    }

    /// Copies the live rows. Returns how many.
    async fn copy(&self, source: &mut Link, target: &mut Link, now: Timestamp) -> Result<u64, StoreError> {
        let columns: Vec<&str> = self.columns().collect();
        let places: Vec<String> = (1..=columns.len()).map(|place| format!("${place}")).collect();
        let text =
            format!("INSERT INTO {} ({}) VALUES ({})", self.name, columns.join(", "), places.join(", "));
        let (mut rows, mut copied) = (self.rows(source, now), 0);
        while let Some(row) = rows.try_next().await? {
            let mut insert = sqlx::query(AssertSqlSafe(text.as_str()));
            for bytes in row.bytes {
                insert = insert.bind(bytes);
            }
            for text in row.texts {
                insert = insert.bind(text);
            }
            for number in row.numbers {
                insert = insert.bind(number);
            }
            insert.execute(&mut **target).await?;
            copied += 1;
        }
        Ok(copied)
    }

    /// Compares the target with the source and opens everything that is sealed. Returns how many keys were
    /// opened.
    async fn verify(
        &self,
        source: &mut Link,
        target: &mut Link,
        now: Timestamp,
        sealer: &Sealer,
    ) -> Result<u64, StoreError> {
        let (mut wanted, mut found, mut opened) = (self.rows(source, now), self.rows(target, now), 0);
        loop {
            match (wanted.try_next().await?, found.try_next().await?) {
                (None, None) => return Ok(opened),
                (Some(wanted), Some(found)) if wanted == found => opened += self.open(&found, sealer)?,
                _ => return Err(StoreError::corrupt(self.name, "read back from the target")),
            }
        }
    }

    /// Unwraps a data key, or opens a record with all its keys. Returns how many keys were opened.
    fn open(&self, row: &Row, sealer: &Sealer) -> Result<u64, StoreError> {
        match (self.name, row.bytes.as_slice(), row.texts.as_slice()) {
            (DATA_KEYS, [id, wrapped], [Some(kek_id), _]) => {
                unwrap_data_key(sealer, id, kek_id, wrapped).map(|()| 0)
            }
            (RECORDS, [batch_id, data_key, header, state, slots], _) => {
                let batch_id = BatchId::from_bytes(id_bytes(batch_id, RECORDS)?);
                let damaged = || StoreError::corrupt(RECORDS, batch_id);
                let record = Record::open(batch_id, data_key, header, state, slots.clone(), sealer)?;
                let record = record.ok_or_else(damaged)?;
                let mut opened = 0;
                for slot in 0..record.header.key_ids.len() {
                    if record.state.of(slot).has_material() {
                        record.key(slot)?.ok_or_else(damaged)?;
                        opened += 1;
                    }
                }
                Ok(opened)
            }
            (TOMBSTONES, ..) => Ok(0),
            _ => Err(StoreError::corrupt(self.name, "unknown")),
        }
    }

    fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.bytes.iter().chain(self.texts).chain(self.numbers).copied()
    }

    /// The live rows, in the same order on every database, read from it as they are asked for.
    fn rows<'a>(
        &'a self,
        link: &'a mut Link,
        now: Timestamp,
    ) -> impl Stream<Item = Result<Row, sqlx::Error>> + Unpin + 'a {
        let columns: Vec<&str> = self.columns().collect();
        let (columns, order) = (columns.join(", "), link.text(self.order));
        let text = format!("SELECT {columns} FROM {} t WHERE {} ORDER BY {order}", self.name, self.live);
        let rows = sqlx::query(AssertSqlSafe(text)).bind(now.as_ms()).fetch(&mut **link);
        rows.map(|row| self.read(&row?))
    }

    fn read(&self, row: &AnyRow) -> Result<Row, sqlx::Error> {
        Ok(Row {
            bytes: self.bytes.iter().map(|column| row.try_get(*column)).collect::<Result<_, _>>()?,
            texts: self.texts.iter().map(|column| row.try_get(*column)).collect::<Result<_, _>>()?,
            numbers: self.numbers.iter().map(|column| row.try_get(*column)).collect::<Result<_, _>>()?,
        })
    }
}
