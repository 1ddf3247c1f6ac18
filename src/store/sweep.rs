//! Erasing what is past its time, within the writer's transaction, a bounded chunk at a time.

use std::time::Duration;

use kme::Timestamp;

use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::seal::DataKeyId;
use super::sql;
use super::types::Swept;

/// How long the mark of a writer stays that commits nothing (`super::commit`): it may be gone. One that is not
/// makes its mark anew.
const MARK_LIFE: Duration = Duration::from_hours(24);

/// Erases at most `limit` rows of each kind.
pub(super) async fn run(
    link: &mut Link,
    limit: u32,
    now: Timestamp,
    data_key_in_use: DataKeyId,
) -> Result<Swept, StoreError> {
    let mut deleted = [0; 5];
    let statements = [
        sql::SWEEP_READY,
        sql::SWEEP_RETRIEVED,
        sql::SWEEP_EXPIRED_KEYS,
        sql::SWEEP_BATCHES,
        sql::SWEEP_TOMBSTONES,
    ];
    for (statement, deleted) in statements.into_iter().zip(&mut deleted) {
        let done = sqlx::query(link.text(statement))
            .bind(now.as_ms())
            .bind(i64::from(limit))
            .execute(&mut **link)
            .await?;
        *deleted = done.rows_affected();
    }
    let data_keys = sqlx::query(link.text(sql::SWEEP_DATA_KEYS))
        .bind(data_key_in_use.as_slice())
        .bind(i64::from(limit))
        .execute(&mut **link)
        .await?
        .rows_affected();
    let mut marks = 0;
    if link.dialect() == Dialect::Postgres {
        let unused_since = now.minus(MARK_LIFE).as_ms();
        marks = sqlx::query(sql::SWEEP_MARKS).bind(unused_since).execute(&mut **link).await?.rows_affected();
    }
    let [ready_blocks, retrieved, expired, batches, tombstones] = deleted;
    Ok(Swept { ready_blocks, keys: retrieved + expired, batches, tombstones, data_keys, marks })
}
