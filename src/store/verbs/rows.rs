//! Records from the table and back to it.

use kme::{BatchId, Timestamp};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyArguments;
use sqlx::query::Query;

use super::data_keys::learn_data_key;
use super::sql;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::{self, NewRecord, Prefix, Record};
use crate::store::sealing::{DataKeyId, Sealer};

/// A row of `records`.
pub(super) enum Found {
    Record(Box<Record>),
    /// It cannot be opened. The error says why.
    Damaged {
        batch_id: BatchId,
        prefix: Prefix,
        error: StoreError,
    },
}

impl Found {
    /// The record, or why it cannot be opened.
    pub(super) fn sound(self) -> Result<Record, StoreError> {
        match self {
            Self::Record(record) => Ok(*record),
            Self::Damaged { error, .. } => Err(error),
        }
    }
}

/// As the statements select it: batch ID, prefix, data key ID, header, state, slots.
type Row = (Vec<u8>, Prefix, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

/// The record of a batch.
pub(super) async fn record(
    link: &mut Link,
    sealer: &Sealer,
    batch_id: BatchId,
) -> Result<Option<Record>, StoreError> {
    let id: &[u8] = batch_id.as_bytes();
    let row = sqlx::query_as(link.text(sql::RECORD)).bind(id).fetch_optional(&mut **link).await?;
    match row {
        Some(row) => open(link, sealer, row).await?.sound().map(Some),
        None => Ok(None),
    }
}

/// What new batches may meet: the records of these batch IDs, and those whose key IDs begin with these prefixes.
pub(super) async fn met_by(
    link: &mut Link,
    sealer: &Sealer,
    new: &[NewRecord],
) -> Result<Vec<Found>, StoreError> {
    let ids = sql::ids(link.dialect(), new.iter().map(|new| &new.record.batch_id));
    let prefixes = sql::numbers(link.dialect(), new.iter().map(|new| new.record.header.prefix()));
    let rows = sqlx::query_as(link.text(sql::MET)).bind(ids).bind(prefixes).fetch_all(&mut **link).await?;
    open_all(link, sealer, rows).await
}

/// The tombstones of these batch IDs: batch and source.
pub(super) async fn tombstones(
    link: &mut Link,
    new: &[NewRecord],
) -> Result<Vec<(Vec<u8>, String)>, StoreError> {
    let ids = sql::ids(link.dialect(), new.iter().map(|new| &new.record.batch_id));
    Ok(sqlx::query_as(link.text(sql::TOMBSTONES)).bind(ids).fetch_all(&mut **link).await?)
}

/// All records whose key IDs begin with one of `prefixes`.
pub(super) async fn records_of(
    link: &mut Link,
    sealer: &Sealer,
    prefixes: &[Prefix],
) -> Result<Vec<Found>, StoreError> {
    let prefixes = sql::numbers(link.dialect(), prefixes);
    let rows = sqlx::query_as(link.text(sql::RECORDS)).bind(prefixes).fetch_all(&mut **link).await?;
    open_all(link, sealer, rows).await
}

/// Ready records of a pair.
pub(super) async fn ready_records(
    link: &mut Link,
    sealer: &Sealer,
    (master, recipient): (&str, &str),
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Found>, StoreError> {
    let rows = sqlx::query_as(link.text(sql::READY))
        .bind(master)
        .bind(recipient)
        .bind(now.as_ms())
        .bind(i64::from(limit))
        .fetch_all(&mut **link)
        .await?;
    open_all(link, sealer, rows).await
}

/// Records with keys that are to be erased by now.
pub(super) async fn due_records(
    link: &mut Link,
    sealer: &Sealer,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Found>, StoreError> {
    let rows = sqlx::query_as(link.text(sql::DUE))
        .bind(now.as_ms())
        .bind(i64::from(limit))
        .fetch_all(&mut **link)
        .await?;
    open_all(link, sealer, rows).await
}

async fn open_all(link: &mut Link, sealer: &Sealer, rows: Vec<Row>) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        found.push(open(link, sealer, row).await?);
    }
    Ok(found)
}

/// Opens a row. Only a failure of the database is an error.
async fn open(link: &mut Link, sealer: &Sealer, row: Row) -> Result<Found, StoreError> {
    let (batch_id, prefix, data_key_id, header, state, slots) = row;
    let batch_id = record::batch_id(&batch_id)?;
    let opened = match learn_data_key(link, sealer, &data_key_id).await {
        Ok(()) => Record::open(batch_id, &data_key_id, &header, &state, slots, sealer),
        Err(error) if error.is_about_rows() => Err(error),
        Err(error) => return Err(error),
    };
    Ok(match opened.and_then(|record| record.ok_or_else(|| StoreError::corrupt(record::TABLE, batch_id))) {
        Ok(record) => Found::Record(Box::new(record)),
        Err(error) => Found::Damaged { batch_id, prefix, error },
    })
}

/// Adds records, all in one statement.
pub(crate) async fn insert(link: &mut Link, sealer: &Sealer, new: &[&NewRecord]) -> Result<(), StoreError> {
    let mut written: Option<DataKeyId> = None;
    for NewRecord { data_key, .. } in new {
        if written == Some(data_key.id) {
            continue;
        }
        // With every insert: the sweep of another process may have erased it as unused.
        sqlx::query(link.text(sql::INSERT_DATA_KEY))
            .bind(data_key.id.as_slice())
            .bind(data_key.kek_id.as_str())
            .bind(data_key.wrapped.as_slice())
            .bind(data_key.created_at.as_ms())
            .bind(sealer.kme().as_str())
            .execute(&mut **link)
            .await?;
        written = Some(data_key.id);
    }
    let mut insert: Query<'_, _, AnyArguments> = sqlx::query(AssertSqlSafe(sql::insert_records(new.len())));
    for NewRecord { record, sealed_header, data_key } in new {
        let (header, listed) = (&record.header, record.listed()?);
        insert = insert
            .bind(record.batch_id.as_bytes().as_slice())
            .bind(header.prefix())
            .bind(header.source.as_str())
            .bind(header.master.as_str())
            .bind(listed.recipient)
            .bind(length(header.key_ids.len())?)
            .bind(length(header.key_bytes)?)
            .bind(data_key.id.as_slice())
            .bind(listed.kept_until.as_ms())
            .bind(length(listed.ready_keys)?)
            .bind(listed.ready_until.map(Timestamp::as_ms))
            .bind(listed.erase_at.map(Timestamp::as_ms))
            .bind(sealed_header.as_slice())
            .bind(record.protected_state()?)
            .bind(record.slots());
    }
    insert.execute(&mut **link).await?;
    Ok(())
}

/// Writes records that were changed.
pub(super) async fn save(link: &mut Link, changed: &[&Record]) -> Result<(), StoreError> {
    let mut most = Vec::with_capacity(changed.len());
    for &record in changed {
        if record.is_listed_as_before()? {
            most.push(record);
        } else {
            let listed = record.listed()?;
            sqlx::query(link.text(sql::UPDATE_RECORD))
                .bind(record.batch_id.as_bytes().as_slice())
                .bind(record.protected_state()?)
                .bind(record.slots())
                .bind(listed.recipient)
                .bind(length(listed.ready_keys)?)
                .bind(listed.ready_until.map(Timestamp::as_ms))
                .bind(listed.erase_at.map(Timestamp::as_ms))
                .bind(listed.kept_until.as_ms())
                .execute(&mut **link)
                .await?;
        }
    }
    // In powers of two, so that there are few different statements.
    let mut rest = most.as_slice();
    while let Some(power) = rest.len().checked_ilog2() {
        let count = 1_usize.checked_shl(power).unwrap_or(1).min(sql::UPDATE_RECORDS_MAX);
        let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        let mut update: Query<'_, _, AnyArguments> =
            sqlx::query(AssertSqlSafe(sql::update_records(now.len())));
        for record in now {
            update = update
                .bind(record.batch_id.as_bytes().as_slice())
                .bind(record.protected_state()?)
                .bind(record.slots());
        }
        update.execute(&mut **link).await?;
        rest = later;
    }
    Ok(())
}

/// Says of a record with keys to be erased that it is to be looked at then.
pub(super) async fn postpone(link: &mut Link, batch_id: BatchId, until: Timestamp) -> Result<(), StoreError> {
    let id: &[u8] = batch_id.as_bytes();
    sqlx::query(link.text(sql::POSTPONE_RECORD)).bind(id).bind(until.as_ms()).execute(&mut **link).await?;
    Ok(())
}

/// Hides a record from leases and sweeps, because its seals do not say what its row says.
pub(super) async fn unlist(link: &mut Link, batch_id: BatchId) -> Result<(), StoreError> {
    let id: &[u8] = batch_id.as_bytes();
    sqlx::query(link.text(sql::UNLIST_RECORD)).bind(id).execute(&mut **link).await?;
    Ok(())
}

fn length(length: usize) -> Result<i64, StoreError> {
    i64::try_from(length).map_err(|_| StoreError::Misuse("a length that is no number of the database"))
}
