//! Keys and the limits on asking for them.

use super::{KeyId, SecretBytes};

/// The secret bytes of one key. Its length in bits is always a multiple of eight.
#[derive(Debug)]
pub struct KeyMaterial(SecretBytes);

impl KeyMaterial {
    /// Wraps the bytes of one key.
    pub fn new(bytes: SecretBytes) -> Self {
        Self(bytes)
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }

    /// The key itself. The caller must wipe every copy that it makes.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// Equality in constant time.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0)
    }
}

/// One key with its ID, ready to be handed to an SAE.
#[derive(Debug)]
pub struct Key {
    /// The ID of the key at all sites.
    pub id: KeyId,
    /// The secret itself.
    pub material: KeyMaterial,
}

/// What an SAE may ask for; reported by `status` (ETSI GS QKD 014, Table 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// `key_size`: the default size in bits.
    pub size_bits: u32,
    /// `min_key_size` in bits.
    pub min_size_bits: u32,
    /// `max_key_size` in bits.
    pub max_size_bits: u32,
    /// `max_key_per_request`.
    pub max_per_request: u32,
    /// `max_key_count`: most ready keys of one pair.
    pub max_stored_per_pair: u32,
    /// `max_SAE_ID_count`: most additional slave SAEs of one request.
    pub max_additional_saes: u32,
}
