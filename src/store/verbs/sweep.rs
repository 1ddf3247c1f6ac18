//! Erasing what is due, a bounded chunk at a time.

use std::time::Duration;

use kme::Timestamp;
use tracing::{error, warn};

use super::ids::id_bytes;
use super::rows::{self, Found};
use super::sql;
use super::verb::Verb;
use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;
use crate::store::record::KeyState;
use crate::store::sealing::Sealer;
use crate::store::types::Swept;

/// How long the commit mark of an idle writer is kept. A writer that is still alive makes a new one.
const MARK_LIFE: Duration = Duration::from_hours(24);

/// How long a record that cannot be opened here is left alone.
const POSTPONED: Duration = Duration::from_mins(1);

/// Erases at most `limit` rows of each kind.
pub(crate) struct Sweep {
    pub(crate) limit: u32,
}

impl Sweep {
    /// Erases the keys that are due, in at most `limit` records: their replay window has ended, or the master's
    /// copy. Returns how many, and how many records were listed though they have no such key.
    async fn erase_due(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let (mut keys, mut unlisted, mut changed) = (0, 0, Vec::new());
        for found in rows::due_records(link, sealer, now, self.limit).await? {
            let spoiled = match found {
                Found::Record(mut record) => {
                    let due = record.state.due(now);
                    if !due.is_empty() {
                        keys += due.len() as u64;
                        for slot in due {
                            record.erase(slot, KeyState::Gone);
                        }
                        changed.push(record);
                        continue;
                    }
                    record.batch_id
                }
                // Another daemon may have the KEK. Later, so that it does not stand in the way of the others.
                Found::Damaged { batch_id, error: StoreError::Seal(error), .. } => {
                    if sealer.may_warn(now) {
                        warn!(%error, "keys that are to be erased cannot be opened here");
                    }
                    rows::postpone(link, batch_id, now.plus(POSTPONED)).await?;
                    unlisted += 1;
                    continue;
                }
                Found::Damaged { batch_id, .. } => batch_id,
            };
            error!(batch.id = %spoiled, "a record was changed in the database; it goes when it expires");
            rows::unlist(link, spoiled).await?;
            unlisted += 1;
        }
        rows::save(link, &changed.iter().map(|record| &**record).collect::<Vec<_>>()).await?;
        Ok((keys, unlisted))
    }

    /// Erases the data keys that no record needs, also in memory.
    async fn erase_data_keys(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let erased: Vec<Vec<u8>> = sqlx::query_scalar(link.text(sql::SWEEP_DATA_KEYS))
            .bind(sealer.current(now)?.id.as_slice())
            .bind(i64::from(self.limit))
            .fetch_all(&mut **link)
            .await?;
        for id in &erased {
            sealer.forget(&id_bytes(id, "data_keys")?);
        }
        Ok(erased.len() as u64)
    }
}

impl Verb for Sweep {
    type Output = Swept;
    const NAME: &'static str = "sweep";

    async fn run(&self, link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<Swept, StoreError> {
        let (keys, unlisted) = self.erase_due(link, sealer, now).await?;
        let mut deleted = [0; 2];
        for (statement, deleted) in [sql::SWEEP_RECORDS, sql::SWEEP_TOMBSTONES].into_iter().zip(&mut deleted)
        {
            let done = sqlx::query(link.text(statement))
                .bind(now.as_ms())
                .bind(i64::from(self.limit))
                .execute(&mut **link)
                .await?;
            *deleted = done.rows_affected();
        }
        let data_keys = self.erase_data_keys(link, sealer, now).await?;
        let mut marks = 0;
        if link.dialect() == Dialect::Postgres {
            let idle_since = now.minus(MARK_LIFE).as_ms();
            marks =
                sqlx::query(sql::SWEEP_MARKS).bind(idle_since).execute(&mut **link).await?.rows_affected();
        }
        let [batches, tombstones] = deleted;
        Ok(Swept { keys, unlisted, batches, tombstones, data_keys, marks })
    }

    fn is_change(swept: &Swept) -> bool {
        swept.any()
    }
}
