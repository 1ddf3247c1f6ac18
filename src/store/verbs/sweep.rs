//! Erasing rows that are due, a bounded chunk at a time.

use std::time::Duration;

use kme::Timestamp;

use super::sql;
use super::verb::{AfterCommit, Verb};
use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;
use crate::store::sealing::Sealer;
use crate::store::types::Swept;

/// How long the commit mark of an idle writer is kept. A writer that is still alive makes a new one.
const MARK_LIFE: Duration = Duration::from_hours(24);

/// Erases at most `limit` rows of each kind.
pub(crate) struct Sweep {
    pub(crate) limit: u32,
}

impl Verb for Sweep {
    type Output = Swept;
    const NAME: &'static str = "sweep";

    async fn run(&self, link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<Swept, StoreError> {
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
                .bind(i64::from(self.limit))
                .execute(&mut **link)
                .await?;
            *deleted = done.rows_affected();
        }
        let data_keys = sqlx::query(link.text(sql::SWEEP_DATA_KEYS))
            .bind(sealer.current().id.as_slice())
            .bind(i64::from(self.limit))
            .execute(&mut **link)
            .await?
            .rows_affected();
        let mut marks = 0;
        if link.dialect() == Dialect::Postgres {
            let idle_since = now.minus(MARK_LIFE).as_ms();
            marks =
                sqlx::query(sql::SWEEP_MARKS).bind(idle_since).execute(&mut **link).await?.rows_affected();
        }
        let [ready_blocks, retrieved, expired, batches, tombstones] = deleted;
        Ok(Swept { ready_blocks, keys: retrieved + expired, batches, tombstones, data_keys, marks })
    }

    fn is_change(swept: &Swept) -> bool {
        swept.any()
    }

    /// When nothing is left to erase, the log may still hold what was erased.
    fn after_commit(&self, swept: &Swept) -> AfterCommit {
        if swept.any() { AfterCommit::Nothing } else { AfterCommit::Checkpoint }
    }
}
