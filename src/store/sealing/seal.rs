//! Sealing of records: headers, key slots and states. Knows nothing of SQL, and not what a header says.
//!
//! | part of a record | protected by | bound to |
//! |---|---|---|
//! | header | AES-256-GCM | KME and table (by the derived key), batch ID |
//! | slot: one key | AES-256-GCM | the same, the header (by its tag), slot number, key ID |
//! | state | HMAC-SHA256, first 16 bytes | the same, the header (by its tag) |
//!
//! The header has the first nonce of the record; the nonces of the slots follow from it. The state changes
//! with each retrieval, by any process that knows the data key: a MAC needs no nonce.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::{constant_time, hmac};
use kme::{BatchId, Key, KeyId, KeyMaterial, KmeId, Random, SecretBytes, Timestamp};
use parking_lot::{Mutex, RwLock};

use super::data_key::{Ciphers, Current, DataKey, DataKeyId};
use super::error::SealError;
use super::kek::KeyEncryptionKeys;

/// What sealing adds to a key.
pub(crate) const TAG_BYTES: usize = 16;
/// The MAC before a state.
pub(crate) const MAC_BYTES: usize = 16;
const COUNTER_BYTES: usize = 4;
/// Most data keys of others that are kept unwrapped.
const KNOWN_MAX: usize = 4_096;
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Seals with the current data key and opens with any data key it knows.
pub struct Sealer {
    keks: KeyEncryptionKeys,
    kme: KmeId,
    random: Arc<dyn Random>,
    current: Mutex<Current>,
    known: RwLock<HashMap<DataKeyId, Arc<Ciphers>>>,
    /// When a missing KEK was last reported, in milliseconds.
    warned_at: AtomicI64,
}

impl Sealer {
    /// For the records of `kme`, with a fresh data key.
    pub fn new(
        keks: KeyEncryptionKeys,
        kme: KmeId,
        random: Arc<dyn Random>,
        now: Timestamp,
    ) -> Result<Self, SealError> {
        let first = DataKey::draw(&keks, &kme, &*random, now)?;
        let known = RwLock::new(HashMap::from([(first.id, Arc::clone(&first.ciphers))]));
        let warned_at = AtomicI64::new(i64::MIN);
        Ok(Self { keks, kme, random, current: Mutex::new(Current::of(first)), known, warned_at })
    }

    /// Whose records these are.
    pub(crate) fn kme(&self) -> &KmeId {
        &self.kme
    }

    /// The KEKs, for what an older release sealed.
    pub(crate) fn keks(&self) -> &KeyEncryptionKeys {
        &self.keks
    }

    /// The data key that seals now. One that is too old is replaced first.
    pub(crate) fn current(&self, now: Timestamp) -> Result<Arc<DataKey>, SealError> {
        let mut current = self.current.lock();
        if current.data_key.is_old(now) {
            self.replace(&mut current, now)?;
        }
        Ok(Arc::clone(&current.data_key))
    }

    /// Whether records of this data key can be opened without [`Self::learn`].
    pub(crate) fn knows(&self, id: &DataKeyId) -> bool {
        self.known.read().contains_key(id)
    }

    /// Unwraps a stored data key, to open records with. `Ok(false)` when the wrapped bytes are not genuine.
    pub(crate) fn learn(&self, id: DataKeyId, kek_id: &str, wrapped: &[u8]) -> Result<bool, SealError> {
        let Some(key) = self.keks.unwrap(kek_id, wrapped)? else { return Ok(false) };
        let ciphers = Arc::new(Ciphers::derive(&key, &self.kme)?);
        let current = self.current.lock().data_key.id;
        let mut known = self.known.write();
        if known.len() >= KNOWN_MAX {
            known.retain(|id, _| *id == current);
        }
        known.insert(id, ciphers);
        Ok(true)
    }

    /// Whether to report a missing KEK again: once a minute.
    pub(crate) fn may_warn(&self, now: Timestamp) -> bool {
        let last = Timestamp::from_ms(self.warned_at.load(Ordering::Relaxed));
        let may = now.since(last) >= WARN_EVERY;
        if may {
            self.warned_at.store(now.as_ms(), Ordering::Relaxed);
        }
        may
    }

    /// Forgets a data key that was erased.
    pub(crate) fn forget(&self, id: &DataKeyId) {
        self.known.write().remove(id);
    }

    /// Seals the header of a new record with `slots` keys. Returns the data key, the sealed header, and the
    /// seal for the rest of the record.
    pub fn begin(
        &self,
        batch_id: BatchId,
        header: &[u8],
        slots: usize,
        now: Timestamp,
    ) -> Result<(Arc<DataKey>, Vec<u8>, RecordSeal), SealError> {
        let seals = u32::try_from(slots).ok().and_then(|slots| slots.checked_add(1));
        let (data_key, first) = self.reserve(seals.ok_or(SealError::Crypto)?, now)?;
        let mut first_nonce = [0; NONCE_LEN];
        let (counter, salt) = first_nonce.split_at_mut(COUNTER_BYTES);
        counter.copy_from_slice(&first.to_be_bytes());
        self.random.fill(salt)?;

        let mut sealed = Vec::with_capacity(NONCE_LEN + header.len() + TAG_BYTES);
        sealed.extend_from_slice(&first_nonce);
        sealed.extend_from_slice(header);
        let text = sealed.get_mut(NONCE_LEN..).unwrap_or_default();
        let ciphers = Arc::clone(&data_key.ciphers);
        let tag = ciphers
            .seal
            .seal_in_place_separate_tag(nonce(first_nonce, 0)?, Aad::from(header_aad(batch_id)), text)
            .map_err(|_| SealError::Crypto)?;
        sealed.extend_from_slice(tag.as_ref());
        let tag = tag.as_ref().try_into().map_err(|_| SealError::Crypto)?;
        Ok((data_key, sealed, RecordSeal { ciphers, batch_id, first_nonce, tag }))
    }

    /// Opens the header of a record. `Ok(None)` when it is not what was sealed there.
    pub fn open(
        &self,
        data_key_id: &DataKeyId,
        batch_id: BatchId,
        header: &[u8],
    ) -> Result<Option<(Vec<u8>, RecordSeal)>, SealError> {
        let known = self.known.read().get(data_key_id).map(Arc::clone);
        let ciphers = known.ok_or(SealError::Crypto)?;
        let (Some((first_nonce, sealed)), Some((_, tag))) =
            (header.split_first_chunk::<NONCE_LEN>(), header.split_last_chunk::<TAG_BYTES>())
        else {
            return Ok(None);
        };
        let mut text = sealed.to_vec();
        let aad = Aad::from(header_aad(batch_id));
        let Ok(opened) = ciphers.seal.open_in_place(nonce(*first_nonce, 0)?, aad, &mut text) else {
            return Ok(None);
        };
        let length = opened.len();
        text.truncate(length);
        Ok(Some((text, RecordSeal { ciphers, batch_id, first_nonce: *first_nonce, tag: *tag })))
    }

    /// The data key for the next record, and its first counter value.
    fn reserve(&self, seals: u32, now: Timestamp) -> Result<(Arc<DataKey>, u32), SealError> {
        let mut current = self.current.lock();
        let taken = if current.data_key.is_old(now) { None } else { current.take_counters(seals) };
        let first = if let Some(first) = taken {
            first
        } else {
            self.replace(&mut current, now)?;
            current.take_counters(seals).ok_or(SealError::Crypto)?
        };
        Ok((Arc::clone(&current.data_key), first))
    }

    fn replace(&self, current: &mut Current, now: Timestamp) -> Result<(), SealError> {
        let fresh = DataKey::draw(&self.keks, &self.kme, &*self.random, now)?;
        self.known.write().insert(fresh.id, Arc::clone(&fresh.ciphers));
        *current = Current::of(fresh);
        Ok(())
    }
}

/// Seals and opens the slots and states of one record. Knows which header they belong to.
pub struct RecordSeal {
    ciphers: Arc<Ciphers>,
    batch_id: BatchId,
    first_nonce: [u8; NONCE_LEN],
    /// Of the header.
    tag: [u8; TAG_BYTES],
}

impl RecordSeal {
    /// Appends a sealed key to `slots`. A slot that is sealed twice must have the same key both times.
    pub fn seal(&self, slot: u32, key: &Key, slots: &mut Vec<u8>) -> Result<(), SealError> {
        let start = slots.len();
        slots.extend_from_slice(key.material.expose());
        let text = slots.get_mut(start..).unwrap_or_default();
        let (nonce, aad) = self.bound(slot, key.id)?;
        let tag = self
            .ciphers
            .seal
            .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
            .map_err(|_| SealError::Crypto)?;
        slots.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a slot. `Ok(None)` when it is not what was sealed there.
    pub fn open(&self, slot: u32, id: KeyId, sealed: &[u8]) -> Result<Option<Key>, SealError> {
        let (nonce, aad) = self.bound(slot, id)?;
        let mut text = SecretBytes::copy_of(sealed);
        let opened = self.ciphers.seal.open_in_place(nonce, Aad::from(aad), text.expose_mut());
        Ok(opened.ok().map(|plain| Key { id, material: KeyMaterial::new(SecretBytes::copy_of(plain)) }))
    }

    /// The state with its MAC in front.
    pub(crate) fn protect(&self, state: &[u8]) -> Vec<u8> {
        let mut protected = Vec::with_capacity(MAC_BYTES + state.len());
        protected.extend_from_slice(&self.mac(state));
        protected.extend_from_slice(state);
        protected
    }

    /// The reverse of [`Self::protect`]. `None` when it is not the state of this record.
    pub(crate) fn state<'a>(&self, protected: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, state) = protected.split_first_chunk::<MAC_BYTES>()?;
        constant_time::verify_slices_are_equal(mac, &self.mac(state)).ok()?;
        Some(state)
    }

    fn mac(&self, state: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = hmac::Context::with_key(&self.ciphers.mac);
        mac.update(self.batch_id.as_bytes());
        mac.update(&self.tag);
        mac.update(state);
        mac.sign().as_ref().first_chunk().copied().unwrap_or_default()
    }

    fn bound(&self, slot: u32, id: KeyId) -> Result<(Nonce, [u8; SLOT_AAD_BYTES]), SealError> {
        let after_the_header = slot.checked_add(1).ok_or(SealError::Crypto)?;
        let parts: [&[u8]; 5] =
            [b"slot", self.batch_id.as_bytes(), &self.tag, &slot.to_be_bytes(), id.as_bytes()];
        Ok((nonce(self.first_nonce, after_the_header)?, joined(&parts)))
    }
}

const HEADER_AAD_BYTES: usize = 4 + 16;
const SLOT_AAD_BYTES: usize = 4 + 16 + TAG_BYTES + 4 + 16;

fn header_aad(batch_id: BatchId) -> [u8; HEADER_AAD_BYTES] {
    joined(&[b"head", batch_id.as_bytes()])
}

/// Parts of fixed lengths, one after the other.
fn joined<const LENGTH: usize>(parts: &[&[u8]]) -> [u8; LENGTH] {
    let mut all = [0; LENGTH];
    let bytes = parts.iter().flat_map(|part| part.iter());
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    all
}

/// The nonce that is `step` after `first`.
fn nonce(first: [u8; NONCE_LEN], step: u32) -> Result<Nonce, SealError> {
    let mut bytes = first;
    let (counter, _) = bytes.split_first_chunk_mut::<COUNTER_BYTES>().ok_or(SealError::Crypto)?;
    *counter = u32::from_be_bytes(*counter).checked_add(step).ok_or(SealError::Crypto)?.to_be_bytes();
    Ok(Nonce::assume_unique_for_key(bytes))
}

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use super::super::data_key::RECORDS_MAX;
    use super::*;

    const START: Timestamp = Timestamp::from_ms(0);

    fn keks() -> KeyEncryptionKeys {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        KeyEncryptionKeys::create_file(&path, &OsRandom).unwrap();
        KeyEncryptionKeys::from_file(&path).unwrap()
    }

    fn sealer() -> Sealer {
        Sealer::new(keks(), "site-a".parse().unwrap(), Arc::new(OsRandom), START).unwrap()
    }

    fn draw() -> BatchId {
        BatchId::draw(&OsRandom).unwrap()
    }

    fn keys(count: usize) -> Vec<Key> {
        KeyId::draw_batch(count, &OsRandom)
            .unwrap()
            .into_iter()
            .map(|id| Key { id, material: KeyMaterial::new(SecretBytes::copy_of(id.as_bytes())) })
            .collect()
    }

    /// Slots of two keys, 32 bytes each.
    fn slots(seal: &RecordSeal, keys: &[Key]) -> Vec<u8> {
        let mut slots = Vec::new();
        for (slot, key) in (0..).zip(keys) {
            seal.seal(slot, key, &mut slots).unwrap();
        }
        slots
    }

    #[test]
    fn counters_never_repeat_within_and_across_records() {
        let sealer = sealer();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let (_, header, _) = sealer.begin(draw(), b"header", 4, START).unwrap();
            let first = u32::from_be_bytes(header[..COUNTER_BYTES].try_into().unwrap());
            for counter in first..=first + 4 {
                assert!(seen.insert(counter), "the counter half alone is distinct");
            }
        }
        assert_eq!(seen.len(), 15);
    }

    #[test]
    fn a_data_key_ends_with_its_counters_its_records_and_its_hour() {
        let sealer = sealer();
        let begin = |now| {
            let (data_key, header, _) = sealer.begin(draw(), b"header", 2, now).unwrap();
            (data_key, header)
        };
        let leave = |seals, records| {
            let mut current = sealer.current.lock();
            (current.seals, current.records) = (u32::MAX - seals, RECORDS_MAX - records);
        };
        let (first, _) = begin(START);
        leave(3, 9);
        let (second, header) = begin(START);
        assert_eq!(second.id, first.id, "up to the very last counter");
        assert_eq!(header[..COUNTER_BYTES], (u32::MAX - 3).to_be_bytes());
        let (second, _) = begin(START);
        assert_ne!(second.id, first.id);
        leave(1000, 1);
        assert_eq!(begin(START).0.id, second.id);
        let (third, _) = begin(START);
        assert_ne!(third.id, second.id);
        let almost = Timestamp::from_ms(3_599_999);
        assert_eq!(begin(almost).0.id, third.id);
        assert_eq!(sealer.current(almost).unwrap().id, third.id);
        let (fourth, _) = begin(START.plus(Duration::from_hours(1)));
        assert_ne!(fourth.id, third.id);
        assert_ne!(begin(almost).0.id, fourth.id, "made in a future that is not there yet");
        assert_ne!(sealer.current(START.plus(Duration::from_hours(9))).unwrap().id, fourth.id);
    }

    #[test]
    fn what_a_replaced_data_key_sealed_still_opens_until_it_is_forgotten() {
        let sealer = sealer();
        let batch = draw();
        let (old, header, _) = sealer.begin(batch, b"old", 0, START).unwrap();
        let (new, _, _) = sealer.begin(draw(), b"new", 0, START.plus(Duration::from_hours(1))).unwrap();
        assert_ne!(old.id, new.id);
        assert_eq!(sealer.open(&old.id, batch, &header).unwrap().unwrap().0, b"old");
        sealer.forget(&old.id);
        assert!(!sealer.knows(&old.id) && sealer.open(&old.id, batch, &header).is_err());
    }

    #[test]
    fn a_header_opens_only_for_its_batch_and_its_kme() {
        let (keks, batch) = (keks(), draw());
        let sealer =
            |kme: &str| Sealer::new(keks.clone(), kme.parse().unwrap(), Arc::new(OsRandom), START).unwrap();
        let here = sealer("site-a");
        let (data_key, header, _) = here.begin(batch, b"header", 0, START).unwrap();
        assert_eq!(here.open(&data_key.id, batch, &header).unwrap().unwrap().0, b"header");
        assert!(here.open(&data_key.id, draw(), &header).unwrap().is_none());
        let other = sealer("site-b");
        assert!(other.learn(data_key.id, &data_key.kek_id, &data_key.wrapped).unwrap());
        assert!(other.open(&data_key.id, batch, &header).unwrap().is_none());
        for index in 0..header.len() {
            let mut bent = header.clone();
            bent[index] ^= 1;
            assert!(here.open(&data_key.id, batch, &bent).unwrap().is_none(), "byte {index}");
        }
        for short in [&header[..header.len() - 1], &header[..20], &[]] {
            assert!(here.open(&data_key.id, batch, short).unwrap().is_none());
        }
    }

    #[test]
    fn a_slot_opens_only_where_it_was_sealed() {
        let sealer = sealer();
        let (batch, pair) = (draw(), keys(2));
        let (data_key, header, seal) = sealer.begin(batch, b"header", 2, START).unwrap();
        let slots = slots(&seal, &pair);
        let (_, seal) = sealer.open(&data_key.id, batch, &header).unwrap().unwrap();
        let (first, second) = slots.split_at(32);
        for (slot, sealed) in [(0, first), (1, second)] {
            let key = &pair[slot as usize];
            let opened = seal.open(slot, key.id, sealed).unwrap().unwrap();
            assert_eq!(opened.material.expose(), key.id.as_bytes());
            assert!(seal.open(1 - slot, key.id, sealed).unwrap().is_none(), "another slot");
            assert!(seal.open(slot, pair[1 - slot as usize].id, sealed).unwrap().is_none(), "another ID");
        }
        let (_, _, again) = sealer.begin(batch, b"header", 2, START).unwrap();
        assert!(again.open(0, pair[0].id, first).unwrap().is_none(), "under another header");
        for index in 0..first.len() {
            let mut bent = first.to_vec();
            bent[index] ^= 1;
            assert!(seal.open(0, pair[0].id, &bent).unwrap().is_none(), "byte {index}");
        }
        for gone in [&[0; 32][..], &[]] {
            assert!(seal.open(0, pair[0].id, gone).unwrap().is_none());
        }
    }

    #[test]
    fn a_slot_that_is_sealed_again_is_the_same_to_the_byte() {
        let sealer = sealer();
        let (batch, pair) = (draw(), keys(2));
        let (data_key, header, seal) = sealer.begin(batch, b"header", 2, START).unwrap();
        let (_, later) = sealer.open(&data_key.id, batch, &header).unwrap().unwrap();
        assert_eq!(slots(&seal, &pair), slots(&later, &pair));
    }

    #[test]
    fn a_state_belongs_to_its_record() {
        let sealer = sealer();
        let (_, _, seal) = sealer.begin(draw(), b"header", 0, START).unwrap();
        let (_, _, other) = sealer.begin(draw(), b"header", 0, START).unwrap();
        let protected = seal.protect(b"state");
        assert_eq!(seal.state(&protected).unwrap(), b"state");
        assert!(other.state(&protected).is_none());
        for index in 0..protected.len() {
            let mut bent = protected.clone();
            bent[index] ^= 1;
            assert!(seal.state(&bent).is_none(), "byte {index}");
        }
        assert!(seal.state(&protected[..15]).is_none() && seal.state(&[]).is_none());
    }
}
