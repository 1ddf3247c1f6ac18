//! Sealing: key-encryption keys wrap data keys, data keys seal records. Knows nothing of SQL.

mod data_key;
mod error;
mod kek;
mod seal;

pub use self::data_key::{DataKey, DataKeyId};
pub use self::error::SealError;
pub use self::kek::{KekError, KeyEncryptionKeys};
pub(crate) use self::seal::{MAC_BYTES, TAG_BYTES};
pub use self::seal::{RecordSeal, Sealer};
