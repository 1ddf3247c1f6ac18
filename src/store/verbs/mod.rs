//! What can be done to the stored keys, inside a writer's transaction. The rules are those of [`kme::life`].

mod batch_cache;
mod data_keys;
mod insert;
mod locks;
mod ready;
mod retrieve;
pub(crate) mod sql;
mod sweep;
mod void;

use std::future::Future;
use std::sync::Arc;

use kme::{BatchId, KeyId, Timestamp};

pub(crate) use self::batch_cache::{BatchCache, BatchFacts};
pub(crate) use self::data_keys::check_data_keys;
pub(crate) use self::insert::Insert;
pub(crate) use self::locks::Needs;
pub(crate) use self::ready::{GiveBack, Lease, PairText, ReadyRow};
pub use self::retrieve::MAX_KEYS_PER_RETRIEVAL;
pub(crate) use self::retrieve::{Retrieve, Rows};
pub(crate) use self::sweep::Sweep;
pub(crate) use self::void::{Void, VoidUnlessLeased};
use super::connection::Link;
use super::error::StoreError;
use super::sealing::Sealer;

/// A change to the store other than a retrieval. (Retrievals of one transaction are decided together: [`Rows`].)
pub(crate) trait Verb: Send + Sync + 'static {
    /// What its caller gets.
    type Output: Send;

    /// Its name in metrics.
    fn name(&self) -> &'static str;

    /// How many keys it handles. Bounds what shares a transaction.
    fn key_count(&self) -> usize {
        0
    }

    /// Adds what it has to lock.
    fn lock(&self, _needs: &mut Needs) {}

    /// Does its part of a transaction. Runs again if the transaction fails.
    fn run(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;

    /// Whether it changed anything, so that a commit is needed.
    fn is_change(_output: &Self::Output) -> bool {
        true
    }

    /// What the writer has to do once this is committed, or had nothing to commit.
    fn after_commit(&self, _output: &Self::Output) -> AfterCommit {
        AfterCommit::Nothing
    }
}

/// What a writer does after a commit.
pub(crate) enum AfterCommit {
    Nothing,
    /// Adds a batch to its cache.
    Cache(Arc<BatchFacts>),
    /// Moves the write-ahead log of SQLite into the database file.
    Checkpoint,
}

/// Key IDs one after the other, as [`sql`] takes them.
fn pack(key_ids: &[KeyId]) -> Vec<u8> {
    key_ids.iter().flat_map(KeyId::as_bytes).copied().collect()
}

/// The reverse of [`pack`].
fn unpack(packed: &[u8]) -> Vec<KeyId> {
    packed.as_chunks().0.iter().map(|id| KeyId::from_bytes(*id)).collect()
}

/// Batch IDs, packed likewise.
fn pack_batches<'a>(batch_ids: impl IntoIterator<Item = &'a BatchId>) -> Vec<u8> {
    batch_ids.into_iter().flat_map(BatchId::as_bytes).copied().collect()
}

/// The bytes of an ID in a row of `table`.
fn id_bytes(bytes: &[u8], table: &'static str) -> Result<[u8; 16], StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(table, "an ID that is not 16 bytes long"))
}

/// Whether no key ID is there twice.
fn are_distinct(mut key_ids: impl Iterator<Item = KeyId>) -> bool {
    let mut seen = std::collections::HashSet::new();
    key_ids.all(|id| seen.insert(id))
}
