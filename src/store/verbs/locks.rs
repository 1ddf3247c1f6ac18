//! What a transaction locks on Postgres before it reads anything. SQLite gives it the whole database.
//!
//! Each statement of a READ COMMITTED transaction sees what others have committed by then. The order is the
//! same everywhere, so transactions never deadlock:
//!
//! 1. the batches to be stored, voided or given back, and the prefixes of key IDs of new ones, by advisory
//!    locks. These also cover batches that do not exist, so a void that finds no batch and an insert that finds
//!    no tombstone cannot both commit, nor two batches with one key ID;
//! 2. the records to be retrieved from, voided or given back to, in the order of their batch IDs.

use std::collections::BTreeSet;

use kme::BatchId;

use super::sql::{self, numbers};
use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;
use crate::store::record::Prefix;

/// Different advisory locks. Few, because the server's table of locks is small; batches that share one only
/// wait for each other.
const LOCKS: i64 = 512;

/// What jobs must lock.
#[derive(Default)]
pub(crate) struct Needs {
    /// Numbers of advisory locks.
    locks: BTreeSet<i64>,
    records: BTreeSet<BatchId>,
    prefixes: BTreeSet<Prefix>,
}

impl Needs {
    /// A batch, also one that does not exist.
    pub(super) fn batch(&mut self, id: BatchId) {
        let number = id.as_bytes().iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte));
        self.locks.insert(number % LOCKS);
    }

    /// A batch that may be added, whose key IDs begin with `prefix`.
    pub(super) fn new_batch(&mut self, id: BatchId, prefix: Prefix) {
        self.batch(id);
        self.locks.insert(prefix % LOCKS);
    }

    /// The record of a batch, if there is one.
    pub(super) fn record(&mut self, id: BatchId) {
        self.records.insert(id);
    }

    /// The records whose key IDs begin with these.
    pub(crate) fn prefixes(&mut self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.prefixes.extend(prefixes);
    }

    /// Locks all of it until the end of the transaction.
    pub(crate) async fn lock(self, link: &mut Link) -> Result<(), StoreError> {
        let dialect = link.dialect();
        if dialect == Dialect::Sqlite {
            return Ok(());
        }
        if !self.locks.is_empty() {
            let locks = numbers(dialect, self.locks);
            sqlx::query(sql::LOCK_BATCHES).bind(locks).execute(&mut **link).await?;
        }
        if !self.records.is_empty() || !self.prefixes.is_empty() {
            let prefixes = numbers(dialect, self.prefixes);
            let records = sql::ids(dialect, &self.records);
            sqlx::query(sql::LOCK_RECORDS).bind(prefixes).bind(records).execute(&mut **link).await?;
        }
        Ok(())
    }
}
