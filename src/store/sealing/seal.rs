//! Sealing of key material: data keys, nonces, associated data. Knows nothing of SQL.
//!
//! **Nonces never repeat under one data key.** A data key is 256 fresh random bits. Only the process that
//! drew it seals with it; later processes open with it and draw their own to seal. A nonce is a 32-bit
//! counter of the data key, then 64 random bits of the batch. The counter alone keeps nonces distinct: one
//! atomic step takes the values for a whole batch, it never goes back, and a data key that has sealed 2^32 -
//! 1 rows is replaced. The random half covers the one case that the counter cannot see: a virtual machine
//! resumed twice from one snapshot.
//!
//! The associated data binds a row to its key ID, batch ID and data key, so a ciphertext moved to another row
//! does not open. (It also holds the constants "keys" and "sealed".) Each part has its length in front.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use kme::{BatchId, Key, KeyId, KeyMaterial, Random, SecretBytes, Timestamp};
use parking_lot::{Mutex, RwLock};

use super::error::SealError;
use super::kek::{DATA_KEY_BYTES, KeyEncryptionKeys};

const TAG_BYTES: usize = 16;
const COUNTER_BYTES: usize = 4;
/// What sealing adds to the material.
const OVERHEAD_BYTES: usize = NONCE_LEN + TAG_BYTES;

/// ID of a data key: 16 random bytes.
pub type DataKeyId = [u8; 16];

/// A data key that this process drew, and seals with.
pub(crate) struct DataKey {
    pub(crate) id: DataKeyId,
    pub(crate) kek_id: String,
    pub(crate) wrapped: Vec<u8>,
    pub(crate) created_at: Timestamp,
    cipher: Arc<LessSafeKey>,
    sealed_rows: AtomicU32,
}

impl DataKey {
    fn draw(keks: &KeyEncryptionKeys, random: &dyn Random, now: Timestamp) -> Result<Self, SealError> {
        let mut id = DataKeyId::default();
        random.fill(&mut id)?;
        let mut key = SecretBytes::zeroed(DATA_KEY_BYTES);
        random.fill(key.expose_mut())?;
        let (kek_id, wrapped) = keks.wrap(&key)?;
        let cipher = Arc::new(cipher(&key)?);
        Ok(Self { id, kek_id, wrapped, created_at: now, cipher, sealed_rows: AtomicU32::new(0) })
    }

    /// Takes `rows` counter values and returns the first. `None` when the data key has fewer left.
    fn take_counters(&self, rows: u32) -> Option<u32> {
        self.sealed_rows
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_add(rows))
            .ok()
    }
}

/// The key IDs and the sealed keys of a batch, each packed in the order of the IDs.
pub struct SealedKeys {
    pub(crate) data_key: Arc<DataKey>,
    /// 16 bytes each.
    pub key_ids: Vec<u8>,
    /// The sealed keys.
    pub sealed: Vec<u8>,
    /// Length of one sealed key in bytes.
    pub sealed_bytes: usize,
}

impl SealedKeys {
    /// What they are sealed with.
    pub fn data_key_id(&self) -> DataKeyId {
        self.data_key.id
    }
}

/// Seals with the current data key and opens with any data key it knows.
pub struct Sealer {
    keks: KeyEncryptionKeys,
    random: Arc<dyn Random>,
    current: Mutex<Arc<DataKey>>,
    known: RwLock<HashMap<DataKeyId, Arc<LessSafeKey>>>,
}

impl Sealer {
    /// With a fresh data key.
    pub fn new(keks: KeyEncryptionKeys, random: Arc<dyn Random>, now: Timestamp) -> Result<Self, SealError> {
        let current = Arc::new(DataKey::draw(&keks, &*random, now)?);
        let known = RwLock::new(HashMap::from([(current.id, Arc::clone(&current.cipher))]));
        Ok(Self { keks, random, current: Mutex::new(current), known })
    }

    /// The data key that seals now.
    pub(crate) fn current(&self) -> Arc<DataKey> {
        Arc::clone(&self.current.lock())
    }

    /// Whether rows of this data key can be opened without [`Self::learn`].
    pub(crate) fn knows(&self, id: &DataKeyId) -> bool {
        self.known.read().contains_key(id)
    }

    /// Unwraps a stored data key, to open rows with. `Ok(false)` when the wrapped bytes are not genuine.
    pub(crate) fn learn(&self, id: DataKeyId, kek_id: &str, wrapped: &[u8]) -> Result<bool, SealError> {
        let Some(key) = self.keks.unwrap(kek_id, wrapped)? else { return Ok(false) };
        let cipher = Arc::new(cipher(&key)?);
        self.known.write().insert(id, cipher);
        Ok(true)
    }

    /// Seals `keys`, which all have one length. The result is sorted by ID, so rows are inserted in index
    /// order.
    pub fn seal(&self, batch_id: BatchId, keys: &[Key], now: Timestamp) -> Result<SealedKeys, SealError> {
        let key_bytes = keys.first().map_or(0, |key| key.material.len_bytes());
        let rows = u32::try_from(keys.len()).map_err(|_| SealError::Crypto)?;
        let (data_key, first_counter) = self.reserve(rows, now)?;
        let mut salt = [0; NONCE_LEN - COUNTER_BYTES];
        self.random.fill(&mut salt)?;

        let mut sorted: Vec<&Key> = keys.iter().collect();
        sorted.sort_unstable_by_key(|key| key.id);
        let sealed_bytes = key_bytes + OVERHEAD_BYTES;
        let mut key_ids = Vec::with_capacity(keys.len() * 16);
        // Full length from the start: growing would leave a copy of a key behind.
        let mut sealed = vec![0; keys.len() * sealed_bytes];
        // The counters come last in the zip, or the range would step past its end.
        let rows = sealed.chunks_exact_mut(sealed_bytes).zip(sorted).zip(first_counter..);
        for ((row, key), counter) in rows {
            let aad = associated_data(key.id, batch_id, &data_key.id);
            let mut nonce = [0; NONCE_LEN];
            let (head, tail) = nonce.split_at_mut(COUNTER_BYTES);
            head.copy_from_slice(&counter.to_be_bytes());
            tail.copy_from_slice(&salt);

            let (nonce_out, rest) = row.split_at_mut(NONCE_LEN);
            let (text, tag_out) = rest.split_at_mut(key_bytes);
            nonce_out.copy_from_slice(&nonce);
            if key.material.len_bytes() != key_bytes {
                return Err(SealError::Crypto);
            }
            text.copy_from_slice(key.material.expose());
            let tag = data_key
                .cipher
                .seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(aad.as_slice()),
                    text,
                )
                .map_err(|_| SealError::Crypto)?;
            tag_out.copy_from_slice(tag.as_ref());
            key_ids.extend_from_slice(key.id.as_bytes());
        }
        Ok(SealedKeys { data_key, key_ids, sealed, sealed_bytes })
    }

    /// Opens one row. `Ok(None)` when the row is not what was sealed there.
    pub fn open(
        &self,
        data_key_id: &DataKeyId,
        key_id: KeyId,
        batch_id: BatchId,
        sealed: &[u8],
    ) -> Result<Option<Key>, SealError> {
        let known = self.known.read().get(data_key_id).cloned();
        let cipher = known.ok_or(SealError::Crypto)?;
        let Some((nonce, text)) = sealed.split_first_chunk::<NONCE_LEN>() else { return Ok(None) };
        let aad = associated_data(key_id, batch_id, data_key_id);
        let mut text = SecretBytes::copy_of(text);
        let opened = cipher.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(aad.as_slice()),
            text.expose_mut(),
        );
        Ok(opened
            .ok()
            .map(|plain| Key { id: key_id, material: KeyMaterial::new(SecretBytes::copy_of(plain)) }))
    }

    /// The data key for the next `rows` rows, and its first counter value.
    fn reserve(&self, rows: u32, now: Timestamp) -> Result<(Arc<DataKey>, u32), SealError> {
        let mut current = self.current.lock();
        if let Some(first) = current.take_counters(rows) {
            return Ok((Arc::clone(&current), first));
        }
        let fresh = Arc::new(DataKey::draw(&self.keks, &*self.random, now)?);
        let first = fresh.take_counters(rows).ok_or(SealError::Crypto)?;
        self.known.write().insert(fresh.id, Arc::clone(&fresh.cipher));
        *current = Arc::clone(&fresh);
        Ok((fresh, first))
    }
}

fn cipher(key: &SecretBytes) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, key.expose()).map(LessSafeKey::new).map_err(|_| SealError::Crypto)
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

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use super::*;

    fn sealer() -> Sealer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        KeyEncryptionKeys::create_file(&path, &OsRandom).unwrap();
        let keks = KeyEncryptionKeys::from_file(&path).unwrap();
        Sealer::new(keks, Arc::new(OsRandom), Timestamp::from_ms(0)).unwrap()
    }

    fn keys(count: usize) -> Vec<Key> {
        KeyId::draw_batch(count, &OsRandom)
            .unwrap()
            .into_iter()
            .map(|id| Key { id, material: KeyMaterial::new(SecretBytes::copy_of(id.as_bytes())) })
            .collect()
    }

    #[test]
    fn nonces_never_repeat_within_and_across_batches() {
        let sealer = sealer();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let batch = BatchId::draw(&OsRandom).unwrap();
            let sealed = sealer.seal(batch, &keys(5), Timestamp::from_ms(0)).unwrap();
            for row in sealed.sealed.chunks(sealed.sealed_bytes) {
                assert!(seen.insert(row[..COUNTER_BYTES].to_vec()), "the counter half alone is distinct");
            }
        }
        assert_eq!(seen.len(), 15);
    }

    #[test]
    fn a_used_up_data_key_is_replaced_and_both_open_their_rows() {
        let sealer = sealer();
        let batch = BatchId::draw(&OsRandom).unwrap();
        let pair = keys(2);
        let first = sealer.seal(batch, &pair, Timestamp::from_ms(0)).unwrap();
        first.data_key.sealed_rows.store(u32::MAX - 1, Ordering::Relaxed);
        let second = sealer.seal(batch, &pair, Timestamp::from_ms(0)).unwrap();
        assert_ne!(first.data_key.id, second.data_key.id);
        for sealed in [first, second] {
            let id = KeyId::from_bytes(sealed.key_ids[..16].try_into().unwrap());
            let row = &sealed.sealed[..sealed.sealed_bytes];
            let key = sealer.open(&sealed.data_key.id, id, batch, row).unwrap().unwrap();
            assert_eq!(key.material.expose(), id.as_bytes());
        }
    }

    #[test]
    fn a_data_key_seals_up_to_its_very_last_counter() {
        let sealer = sealer();
        let batch = BatchId::draw(&OsRandom).unwrap();
        sealer.current().sealed_rows.store(u32::MAX - 2, Ordering::Relaxed);
        let sealed = sealer.seal(batch, &keys(2), Timestamp::from_ms(0)).unwrap();
        assert_eq!(sealed.data_key.id, sealer.current().id);
        assert_eq!(sealed.sealed[sealed.sealed_bytes..][..COUNTER_BYTES], (u32::MAX - 1).to_be_bytes());
    }

    #[test]
    fn a_row_opens_only_as_what_it_was_sealed() {
        let sealer = sealer();
        let batch = BatchId::draw(&OsRandom).unwrap();
        let pair = keys(2);
        let sealed = sealer.seal(batch, &pair, Timestamp::from_ms(0)).unwrap();
        let id = KeyId::from_bytes(sealed.key_ids[..16].try_into().unwrap());
        let other = KeyId::from_bytes(sealed.key_ids[16..].try_into().unwrap());
        let row = &sealed.sealed[..sealed.sealed_bytes];
        let dk = &sealed.data_key.id;
        assert!(sealer.open(dk, id, batch, row).unwrap().is_some());
        assert!(sealer.open(dk, other, batch, row).unwrap().is_none());
        assert!(sealer.open(dk, id, BatchId::draw(&OsRandom).unwrap(), row).unwrap().is_none());
        for index in 0..row.len() {
            let mut bent = row.to_vec();
            bent[index] ^= 1;
            assert!(sealer.open(dk, id, batch, &bent).unwrap().is_none(), "byte {index}");
        }
        assert!(sealer.open(dk, id, batch, &row[..row.len() - 1]).unwrap().is_none());
        assert!(sealer.open(dk, id, batch, &[]).unwrap().is_none());
    }
}
