//! Opens keys as the release before sealed them: each row by itself, with AES-256-GCM under the data key.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use kme::{BatchId, Key, KeyId, KeyMaterial, SecretBytes};

use crate::store::error::StoreError;
use crate::store::sealing::{DataKeyId, KeyEncryptionKeys, SealError};

/// The data keys of the release before.
pub(super) struct OldSeals(HashMap<Vec<u8>, Result<LessSafeKey, StoreError>>);

impl OldSeals {
    /// From rows of `data_keys`: ID, ID of the KEK, wrapped key.
    pub(super) fn new(stored: Vec<(Vec<u8>, String, Vec<u8>)>, keks: &KeyEncryptionKeys) -> Self {
        let unwrapped = |(id, kek_id, wrapped): (Vec<u8>, String, Vec<u8>)| {
            let key = unwrap(&id, &kek_id, &wrapped, keks);
            (id, key)
        };
        Self(stored.into_iter().map(unwrapped).collect())
    }

    /// Opens a key. `Ok(None)`: it is not what was sealed there.
    ///
    /// # Errors
    /// [`StoreError::Seal`] if the KEK is missing.
    pub(super) fn open(
        &self,
        data_key_id: &DataKeyId,
        id: KeyId,
        batch_id: BatchId,
        sealed: &[u8],
    ) -> Result<Option<Key>, StoreError> {
        let Some(cipher) = self.0.get(data_key_id.as_slice()) else { return Ok(None) };
        let cipher = match cipher {
            Ok(cipher) => cipher,
            Err(error @ StoreError::Seal(_)) => return Err(error.clone()),
            Err(_) => return Ok(None),
        };
        let Some((nonce, text)) = sealed.split_first_chunk::<NONCE_LEN>() else { return Ok(None) };
        let mut text = SecretBytes::copy_of(text);
        let aad = associated_data(id, batch_id, data_key_id);
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = cipher.open_in_place(nonce, Aad::from(aad), text.expose_mut());
        Ok(opened.ok().map(|plain| Key { id, material: KeyMaterial::new(SecretBytes::copy_of(plain)) }))
    }
}

fn unwrap(
    id: &[u8],
    kek_id: &str,
    wrapped: &[u8],
    keks: &KeyEncryptionKeys,
) -> Result<LessSafeKey, StoreError> {
    let key = keks.unwrap(kek_id, wrapped)?;
    let key = key.ok_or_else(|| StoreError::corrupt("data_keys", hex::encode(id)))?;
    let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| SealError::Crypto)?;
    Ok(LessSafeKey::new(key))
}

fn associated_data(key_id: KeyId, batch_id: BatchId, data_key_id: &DataKeyId) -> Vec<u8> {
    let parts: [&[u8]; 6] =
        [b"dqkd store 1", b"keys", b"sealed", key_id.as_bytes(), batch_id.as_bytes(), data_key_id];
    let mut bound = Vec::with_capacity(128);
    for part in parts {
        bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bound.extend_from_slice(part);
    }
    bound
}
