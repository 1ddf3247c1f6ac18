//! The tables of a store, for a copy: columns, order of rows, which rows are live.

use std::fmt::Write as _;

use kme::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;

/// Rows that one statement reads or writes.
pub(super) const PAGE_ROWS: usize = 200;
/// The table with sealed keys.
pub(super) const RECORDS: &str = "records";

/// One row, in the order of the table's columns.
pub(super) type Row = Vec<Value>;

/// A value of any column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Text(String),
    Number(i64),
    /// NULL in a column of text.
    NoText,
    /// NULL in a column of numbers.
    NoNumber,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bytes,
    Text,
    Number,
}

/// One table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    columns: &'static [(&'static str, Kind)],
    /// How many of the first columns are the primary key.
    key: usize,
    /// Which rows are live at the time `$1`.
    live: &'static str,
}

/// In the order of their references. Not `commit_marks`, which belong to the writers of one database.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "data_keys",
        columns: &[
            ("data_key_id", Kind::Bytes),
            ("kek_id", Kind::Text),
            ("wrapped", Kind::Bytes),
            ("created_at_ms", Kind::Number),
            ("kme", Kind::Text),
        ],
        key: 1,
        live: "EXISTS (SELECT 1 FROM records r WHERE r.data_key_id = t.data_key_id AND r.expires_at_ms > $1)",
    },
    Table {
        name: RECORDS,
        columns: &[
            ("batch_id", Kind::Bytes),
            ("data_key_id", Kind::Bytes),
            ("prefix", Kind::Number),
            ("source_kme", Kind::Text),
            ("master_sae", Kind::Text),
            ("recipient", Kind::Text),
            ("key_count", Kind::Number),
            ("key_bytes", Kind::Number),
            ("expires_at_ms", Kind::Number),
            ("ready_keys", Kind::Number),
            ("ready_until_ms", Kind::Number),
            ("erase_at_ms", Kind::Number),
            ("header", Kind::Bytes),
            ("state", Kind::Bytes),
            ("slots", Kind::Bytes),
        ],
        key: 1,
        live: "t.expires_at_ms > $1",
    },
    Table {
        name: "tombstones",
        columns: &[("batch_id", Kind::Bytes), ("source_kme", Kind::Text), ("expires_at_ms", Kind::Number)],
        key: 2,
        live: "t.expires_at_ms > $1",
    },
];

impl Table {
    /// The primary key of a row, after which the next page begins.
    pub(super) fn key_of(&self, row: &Row) -> Row {
        row.iter().take(self.key).cloned().collect()
    }

    pub(super) async fn count(&self, link: &mut Link) -> Result<u64, StoreError> {
        let text = format!("SELECT count(*) FROM {}", self.name);
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(&mut **link).await?;
        Ok(count.unsigned_abs())
    }

    /// The next live rows after the key `after`, in the same order on every database.
    pub(super) async fn page(
        &self,
        link: &mut Link,
        after: Option<&Row>,
        now: Timestamp,
    ) -> Result<Vec<Row>, StoreError> {
        let text = self.select(link.dialect(), after.is_some());
        let mut query = sqlx::query(AssertSqlSafe(text)).bind(now.as_ms());
        for value in after.into_iter().flatten() {
            query = value.bind_to(query);
        }
        let rows = query.fetch_all(&mut **link).await?;
        rows.iter().map(|row| self.read(row)).collect()
    }

    pub(super) async fn insert(&self, link: &mut Link, page: &[Row]) -> Result<(), StoreError> {
        let text = self.insertion(page.len());
        let mut query = sqlx::query(AssertSqlSafe(text));
        for value in page.iter().flatten() {
            query = value.bind_to(query);
        }
        let done = query.execute(&mut **link).await?;
        if done.rows_affected() == page.len() as u64 {
            Ok(())
        } else {
            Err(StoreError::corrupt(self.name, "rows written to the target"))
        }
    }

    /// Compares text by its bytes; other collations differ between databases.
    fn select(&self, dialect: Dialect, has_after: bool) -> String {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| format!("t.{name}")).collect();
        let key: Vec<String> = self
            .columns
            .iter()
            .take(self.key)
            .map(|(name, kind)| match (dialect, kind) {
                (Dialect::Postgres, Kind::Text) => format!("t.{name} COLLATE \"C\""),
                _ => format!("t.{name}"),
            })
            .collect();
        let key = key.join(", ");
        let mut text = format!("SELECT {} FROM {} t WHERE {}", names.join(", "), self.name, self.live);
        if has_after {
            let places: Vec<String> = (2..).take(self.key).map(|place| format!("${place}")).collect();
            let _ = write!(text, " AND ({key}) > ({})", places.join(", "));
        }
        let _ = write!(text, " ORDER BY {key} LIMIT {PAGE_ROWS}");
        text
    }

    fn insertion(&self, rows: usize) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        let mut text = format!("INSERT INTO {} ({}) VALUES ", self.name, names.join(", "));
        for row in 0..rows {
            let first = row * names.len() + 1;
            let places: Vec<String> = (first..).take(names.len()).map(|place| format!("${place}")).collect();
            let _ = write!(text, "{}({})", if row == 0 { "" } else { ", " }, places.join(", "));
        }
        text
    }

    fn read(&self, row: &AnyRow) -> Result<Row, StoreError> {
        let value = |(place, (_, kind)): (usize, &(&str, Kind))| {
            Ok(match kind {
                Kind::Bytes => Value::Bytes(row.try_get(place)?),
                Kind::Text => row.try_get::<Option<String>, _>(place)?.map_or(Value::NoText, Value::Text),
                Kind::Number => row.try_get::<Option<i64>, _>(place)?.map_or(Value::NoNumber, Value::Number),
            })
        };
        self.columns
            .iter()
            .enumerate()
            .map(value)
            .collect::<Result<Row, sqlx::Error>>()
            .map_err(StoreError::from)
    }
}

type AnyQuery<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

impl Value {
    fn bind_to<'q>(&'q self, query: AnyQuery<'q>) -> AnyQuery<'q> {
        match self {
            Self::Bytes(bytes) => query.bind(bytes.as_slice()),
            Self::Text(text) => query.bind(text.as_str()),
            Self::Number(number) => query.bind(*number),
            Self::NoText => query.bind(None::<String>),
            Self::NoNumber => query.bind(None::<i64>),
        }
    }
}
