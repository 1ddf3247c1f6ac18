//! Owned secrets: wiped when dropped, never cloned, never printed, compared in constant time.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Random, RandomError};

/// Secret bytes of a fixed length on the heap.
///
/// A boxed slice cannot grow, so no copy is left behind by a reallocation.
#[derive(ZeroizeOnDrop)]
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// `len_bytes` zero bytes, to be filled through [`Self::expose_mut`].
    pub fn zeroed(len_bytes: usize) -> Self {
        Self(vec![0; len_bytes].into_boxed_slice())
    }

    /// A copy of `bytes`. The caller wipes the original.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Takes over `bytes`. A vector with spare capacity is copied and its buffer wiped.
    pub fn take(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self(bytes.into_boxed_slice());
        }
        let taken = Self::copy_of(&bytes);
        bytes.zeroize();
        taken
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secret itself. The caller must wipe every copy that it makes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret itself, for filling.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Equality, in time that depends only on the lengths.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// A 32-byte seed of a batch: `seed` (sampling and diagonal) or `mask_seed`.
///
/// Secret until the pools that it samples are gone. Source: `docs/blast-engine.md`, section 4.
#[derive(ZeroizeOnDrop)]
pub struct Seed(Box<[u8; Seed::LEN_BYTES]>);

impl Seed {
    /// Length of every seed in bytes.
    pub const LEN_BYTES: usize = 32;

    /// A fresh seed from `random`.
    ///
    /// # Errors
    /// [`RandomError`] when the generator fails.
    pub fn draw(random: &dyn Random) -> Result<Self, RandomError> {
        let mut seed = Self(Box::new([0; Self::LEN_BYTES]));
        random.fill(seed.0.as_mut_slice())?;
        Ok(seed)
    }

    /// A copy of `bytes`; `None` unless there are exactly [`Self::LEN_BYTES`].
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        let mut seed = Self(Box::new([0; Self::LEN_BYTES]));
        if bytes.len() != Self::LEN_BYTES {
            return None;
        }
        seed.0.copy_from_slice(bytes);
        Some(seed)
    }

    /// The seed itself. The caller must wipe every copy that it makes.
    pub fn expose(&self) -> &[u8; Self::LEN_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(32 bytes)")
    }
}

/// Appends to a buffer of secrets. If the buffer must grow, wipes the old memory.
pub fn append_wiped(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    const FIRST_BYTES: usize = 1024;
    if bytes.capacity() - bytes.len() < more.len() {
        let wanted = (bytes.len() + more.len()).max(2 * bytes.capacity()).max(FIRST_BYTES);
        let mut larger = Zeroizing::new(Vec::with_capacity(wanted));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_lengths_only() {
        let secret = SecretBytes::copy_of(&[0xab; 32]);
        assert_eq!(format!("{secret:?}"), "SecretBytes(32 bytes)");
        let seed = Seed::copy_of(&[0xab; 32]).unwrap();
        assert_eq!(format!("{seed:?}"), "Seed(32 bytes)");
    }

    #[test]
    fn take_keeps_the_bytes_with_and_without_spare_capacity() {
        let mut spare = Vec::with_capacity(64);
        spare.extend_from_slice(&[1, 2, 3]);
        assert_eq!(SecretBytes::take(spare).expose(), &[1, 2, 3]);
        assert_eq!(SecretBytes::take(vec![4, 5]).expose(), &[4, 5]);
    }

    #[test]
    fn equality_compares_contents_and_length() {
        let secret = SecretBytes::copy_of(b"abc");
        assert!(secret.ct_eq(&SecretBytes::copy_of(b"abc")));
        assert!(!secret.ct_eq(&SecretBytes::copy_of(b"abd")));
        assert!(!secret.ct_eq(&SecretBytes::copy_of(b"ab")));
    }

    #[test]
    fn a_seed_of_another_length_is_refused() {
        assert!(Seed::copy_of(&[0; 31]).is_none());
        assert!(Seed::copy_of(&[0; 33]).is_none());
    }
}
