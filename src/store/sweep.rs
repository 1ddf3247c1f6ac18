//! Erasing what is past its time, within the writer's transaction, a bounded chunk at a time.

use sqlx::sqlite::SqliteConnection;

use super::error::StoreError;
use super::seal::DataKeyId;
use super::sql;
use super::types::Swept;
use crate::kme::Timestamp;

/// Erases at most `limit` rows of each kind.
pub(super) async fn run(
    connection: &mut SqliteConnection,
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
        let done = sqlx::query(statement).bind(now.as_ms()).bind(limit).execute(&mut *connection).await?;
        *deleted = done.rows_affected();
    }
    let data_keys = sqlx::query(sql::SWEEP_DATA_KEYS)
        .bind(data_key_in_use.as_slice())
        .bind(limit)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    let [ready_blocks, retrieved, expired, batches, tombstones] = deleted;
    Ok(Swept { ready_blocks, keys: retrieved + expired, batches, tombstones, data_keys })
}
