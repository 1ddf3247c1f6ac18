//! Random pools: the vault of a pool server, and the pool sets of a site.
//!
//! Owns every byte of a pool until it is wiped. Never writes a pool to disk or to a log, and sends it only to
//! its named readers. Knows nothing of keys, batches or SAEs.

mod client;
mod entropy;
mod error;
mod flight;
mod locked;
mod quota;
mod readers;
mod recipient_sets;
mod servers;
mod set;
mod source_sets;
mod standing;
mod vault;
pub mod wire;

pub use client::{PoolClient, PoolClientError};
pub use entropy::EntropySource;
pub use error::PoolSetError;
pub use locked::{LockReport, LockedError, LockedWords, lock_report};
pub use quota::{Quota, Reservation};
pub use recipient_sets::{RecipientSetError, RecipientSets, RecipientSetsSettings};
pub use servers::{PoolServers, PoolServersSettings};
pub use set::{AnnouncedPool, AnnouncedSet, HeldPool, PoolSet, SetTrouble};
pub use source_sets::{
    AnnounceError, Announcing, SetAnnouncer, SourceSetError, SourceSets, SourceSetsSettings,
};
pub use standing::ServerStanding;
pub use vault::{
    CreatedPool, DownloadOverdue, OpenPool, PoolReads, PoolRequest, PoolVault, ReaderReads, ReservedPool,
    VaultError, VaultLimits,
};
