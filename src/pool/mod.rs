//! Random pools: the server's vault of them, and the sets of them that sites hold.
//!
//! Owns every byte of a pool from its making to its wiping. Nothing of a pool is ever written to disk,
//! logged, or given to anyone but its named readers. Knows nothing of keys, batches or SAEs.

mod entropy;
mod locked;
mod quota;
mod vault;

pub use entropy::EntropySource;
pub use locked::{LockReport, LockedError, LockedWords, lock_report};
pub use quota::{Quota, Reservation};
pub use vault::{
    CreatedPool, DownloadOverdue, OpenPool, POOL_WORDS_MAX, POOL_WORDS_MIN, PoolReads, PoolRequest,
    PoolVault, ReaderReads, ReservedPool, VaultError, VaultLimits,
};
