//! Sealing without a database, for measurements.

use std::sync::Arc;

use kme::{BatchId, Key, KeyId, Random, Timestamp};

use super::error::SealError;
use super::kek::KeyEncryptionKeys;
use super::seal::{SealedKeys, Sealer};

/// Seals and opens as the store does.
pub struct SealProbe {
    sealer: Sealer,
    batch_id: BatchId,
}

/// A sealed batch.
pub struct SealedBatch(SealedKeys);

impl SealProbe {
    /// A probe with a data key of its own.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn new(
        keks: KeyEncryptionKeys,
        random: Arc<dyn Random>,
        batch_id: BatchId,
    ) -> Result<Self, SealError> {
        Ok(Self { sealer: Sealer::new(keks, random, Timestamp::from_ms(0))?, batch_id })
    }

    /// Seals keys of one length.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, keys: &[Key]) -> Result<SealedBatch, SealError> {
        self.sealer.seal(self.batch_id, keys, Timestamp::from_ms(0)).map(SealedBatch)
    }

    /// Opens every key again. Returns how many were genuine.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, batch: &SealedBatch) -> Result<usize, SealError> {
        let SealedKeys { data_key, key_ids, sealed, sealed_bytes } = &batch.0;
        let mut genuine = 0;
        for (id, row) in key_ids.as_chunks().0.iter().zip(sealed.chunks_exact(*sealed_bytes)) {
            let key = self.sealer.open(&data_key.id, KeyId::from_bytes(*id), self.batch_id, row)?;
            genuine += usize::from(key.is_some());
        }
        Ok(genuine)
    }
}
