//! Data keys: what records are sealed with. Knows nothing of SQL.
//!
//! **Nonces never repeat under one data key.** A data key is 256 fresh random bits. Only the process that drew
//! it seals new records with it; later processes open with it and draw their own. A nonce is a 32-bit counter
//! of the data key, then 64 random bits of the record. The counter alone keeps nonces distinct: one step
//! takes the values for a whole record, and it never goes back. The random half covers the one case that the
//! counter cannot see: a virtual machine resumed twice from one snapshot.
//!
//! A data key is never used itself. HKDF-SHA256 makes two keys of it, for this KME and for the table `records`:
//! one seals, one authenticates the states of records. So nothing that was sealed for another KME opens here.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use kme::{KmeId, Random, SecretBytes, Timestamp};

use super::error::SealError;
use super::kek::{DATA_KEY_BYTES, KeyEncryptionKeys};

/// Longest time that a data key seals new records.
pub(crate) const DATA_KEY_LIFE: Duration = Duration::from_hours(1);
/// Most records that a data key seals.
pub(super) const RECORDS_MAX: u32 = 65_536;
const LABEL: &[u8] = b"dqkd store 2";
const TABLE: &[u8] = b"records";

/// ID of a data key: 16 random bytes.
pub type DataKeyId = [u8; 16];

/// The two keys that are made of a data key.
pub(super) struct Ciphers {
    pub(super) seal: LessSafeKey,
    pub(super) mac: hmac::Key,
}

impl Ciphers {
    pub(super) fn derive(data_key: &SecretBytes, kme: &KmeId) -> Result<Self, SealError> {
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL).extract(data_key.expose());
        // An ID has no control characters, so the zero byte ends it.
        let seal: [&[u8]; 4] = [b"seal", TABLE, kme.as_str().as_bytes(), b"\0"];
        let mac: [&[u8]; 4] = [b"mac.", TABLE, kme.as_str().as_bytes(), b"\0"];
        let seal = derived.expand(&seal, &AES_256_GCM).map_err(|_| SealError::Crypto)?;
        let mac = derived.expand(&mac, hmac::HMAC_SHA256).map_err(|_| SealError::Crypto)?;
        Ok(Self { seal: LessSafeKey::new(UnboundKey::from(seal)), mac: hmac::Key::from(mac) })
    }
}

/// A data key that this process drew, and seals with.
pub struct DataKey {
    pub(crate) id: DataKeyId,
    pub(crate) kek_id: String,
    pub(crate) wrapped: Vec<u8>,
    pub(crate) created_at: Timestamp,
    pub(super) ciphers: Arc<Ciphers>,
}

impl DataKey {
    pub(super) fn draw(
        keks: &KeyEncryptionKeys,
        kme: &KmeId,
        random: &dyn Random,
        now: Timestamp,
    ) -> Result<Self, SealError> {
        let mut id = DataKeyId::default();
        random.fill(&mut id)?;
        let mut key = SecretBytes::zeroed(DATA_KEY_BYTES);
        random.fill(key.expose_mut())?;
        let (kek_id, wrapped) = keks.wrap(&key)?;
        let ciphers = Arc::new(Ciphers::derive(&key, kme)?);
        Ok(Self { id, kek_id, wrapped, created_at: now, ciphers })
    }

    /// Whether it has sealed for its whole life. Also when the clock was set back, since nobody can tell then.
    pub(super) fn is_old(&self, now: Timestamp) -> bool {
        now < self.created_at || now.since(self.created_at) >= DATA_KEY_LIFE
    }
}

/// The data key that seals, and what it has sealed.
pub(super) struct Current {
    pub(super) data_key: Arc<DataKey>,
    /// Counter values that were taken.
    pub(super) seals: u32,
    pub(super) records: u32,
}

impl Current {
    pub(super) fn of(data_key: DataKey) -> Self {
        Self { data_key: Arc::new(data_key), seals: 0, records: 0 }
    }

    /// Takes `seals` counter values for a new record and returns the first. `None` when the data key has
    /// fewer left.
    pub(super) fn take_counters(&mut self, seals: u32) -> Option<u32> {
        let after = self.seals.checked_add(seals).filter(|_| self.records < RECORDS_MAX)?;
        self.records += 1;
        Some(std::mem::replace(&mut self.seals, after))
    }
}
