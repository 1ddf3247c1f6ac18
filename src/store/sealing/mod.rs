//! Sealing of key material: key-encryption keys wrap data keys, data keys seal rows. Knows nothing of SQL.

mod error;
mod kek;
mod seal;

pub use self::error::SealError;
pub use self::kek::{KekError, KeyEncryptionKeys};
pub use self::seal::{DataKeyId, SealedKeys, Sealer};
