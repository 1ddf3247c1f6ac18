//! For tests here and elsewhere: how much a store holds.

use std::slice;

use super::{Inserted, NewBatch, Store, StoreError};

const RECORDS: &str = "SELECT key_count, slots FROM records";

impl Store {
    /// Stores one batch.
    pub(crate) async fn insert_batch(&self, batch: &NewBatch<'_>) -> Result<Inserted, StoreError> {
        self.insert_batches(slice::from_ref(batch)).await
    }
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Batches, also voided ones and those whose keys are all retrieved.
    pub(crate) batches: u64,
    /// Keys whose material is still here, whatever the state of their record says.
    pub(crate) keys: u64,
}

/// Counts what is stored.
pub(crate) async fn counts(store: &Store) -> Counts {
    let read = store.reader.read(async |link| Ok(sqlx::query_as(RECORDS).fetch_all(&mut **link).await?));
    let records: Vec<(i64, Vec<u8>)> = read.await.unwrap();
    Counts {
        batches: records.len() as u64,
        keys: records.iter().map(|(count, slots)| full_slots(*count, slots)).sum(),
    }
}

/// How many of a record's `count` slots have something.
pub(crate) fn full_slots(count: i64, slots: &[u8]) -> u64 {
    let count = usize::try_from(count).unwrap();
    if slots.is_empty() {
        return 0;
    }
    let slots = slots.chunks_exact(slots.len() / count);
    slots.filter(|slot| slot.iter().any(|byte| *byte != 0)).count() as u64
}
