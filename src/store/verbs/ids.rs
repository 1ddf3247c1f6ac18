//! IDs in columns.

use crate::store::error::StoreError;

/// The bytes of an ID in a row of `table`.
pub(crate) fn id_bytes(bytes: &[u8], table: &'static str) -> Result<[u8; 16], StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(table, "an ID that is not 16 bytes long"))
}
