//! What a transaction locks on Postgres before it reads anything. SQLite gives it the whole database.
//!
//! Each statement of a READ COMMITTED transaction sees what others have committed by then. So one statement
//! locks the rows that a decision needs, and a later one reads them. The order is the same everywhere, so
//! transactions never deadlock:
//!
//! 1. the batches to be stored, voided or given back, by advisory locks. These also cover batches that do not
//!    exist, so a void that finds no batch and an insert that finds no tombstone cannot both commit;
//! 2. the ready blocks of batches to be voided. Leases pass over locked blocks; a lease that came first may
//!    still take keys;
//! 3. the keys to be retrieved or voided.

use kme::{BatchId, KeyId};

use super::ids::{pack, pack_batches};
use super::sql;
use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;

/// What jobs must lock.
#[derive(Default)]
pub(crate) struct Needs {
    batches: Vec<BatchId>,
    ready_blocks: Vec<BatchId>,
    /// Batches of which all keys are needed.
    whole_batches: Vec<BatchId>,
    keys: Vec<KeyId>,
}

impl Needs {
    /// A batch, also one that does not exist.
    pub(super) fn batch(&mut self, id: BatchId) {
        self.batches.push(id);
    }

    /// A batch, its block of ready keys and `key_ids`: all of its keys if that is empty.
    pub(super) fn keys_of_batch(&mut self, id: BatchId, key_ids: &[KeyId]) {
        self.batch(id);
        self.ready_blocks.push(id);
        self.keys.extend_from_slice(key_ids);
        if key_ids.is_empty() {
            self.whole_batches.push(id);
        }
    }

    /// Keys of any batch.
    pub(crate) fn keys(&mut self, key_ids: &[KeyId]) {
        self.keys.extend_from_slice(key_ids);
    }

    /// Locks all of it until the end of the transaction.
    pub(crate) async fn lock(self, link: &mut Link) -> Result<(), StoreError> {
        if link.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        if !self.batches.is_empty() {
            sqlx::query(sql::LOCK_BATCHES).bind(pack_batches(&self.batches)).execute(&mut **link).await?;
        }
        if !self.ready_blocks.is_empty() {
            sqlx::query(sql::LOCK_READY).bind(pack_batches(&self.ready_blocks)).execute(&mut **link).await?;
        }
        let mut keys = pack(&self.keys);
        if !self.whole_batches.is_empty() {
            // The list of a batch's keys never changes.
            let lists: Vec<Vec<u8>> = sqlx::query_scalar(sql::KEYS_OF_BATCHES)
                .bind(pack_batches(&self.whole_batches))
                .fetch_all(&mut **link)
                .await?;
            keys.extend(lists.into_iter().flatten());
        }
        if !keys.is_empty() {
            sqlx::query(sql::LOCK_KEYS).bind(keys).execute(&mut **link).await?;
        }
        Ok(())
    }
}
