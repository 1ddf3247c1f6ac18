//! IDs in the form of columns and parameters.

use std::collections::HashSet;

use kme::{BatchId, KeyId};

use crate::store::error::StoreError;

/// Key IDs one after the other, as [`super::sql`] takes them.
pub(super) fn pack(key_ids: &[KeyId]) -> Vec<u8> {
    key_ids.iter().flat_map(KeyId::as_bytes).copied().collect()
}

/// The reverse of [`pack`].
pub(super) fn unpack(packed: &[u8]) -> Vec<KeyId> {
    packed.as_chunks().0.iter().map(|id| KeyId::from_bytes(*id)).collect()
}

/// Batch IDs, packed in the same way.
pub(super) fn pack_batches<'a>(batch_ids: impl IntoIterator<Item = &'a BatchId>) -> Vec<u8> {
    batch_ids.into_iter().flat_map(BatchId::as_bytes).copied().collect()
}

/// The bytes of an ID in a row of `table`.
pub(crate) fn id_bytes(bytes: &[u8], table: &'static str) -> Result<[u8; 16], StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(table, "an ID that is not 16 bytes long"))
}

/// Whether no key ID is there twice.
pub(super) fn are_distinct(mut key_ids: impl Iterator<Item = KeyId>) -> bool {
    let mut seen = HashSet::new();
    key_ids.all(|id| seen.insert(id))
}
