//! The vocabulary of the daemon: identifiers, keys, parties, limits, time and randomness.
//!
//! Plain types with their invariants; no I/O, no async, no knowledge of wires or tables. Every other
//! room speaks in these words, so a value that reaches them is already valid.

mod backoff;
mod causes;
mod clock;
mod directory;
mod id;
mod key;
pub mod life;
mod policy;
mod provenance;
mod random;
mod secret;

pub use backoff::Backoff;
pub use causes::causes;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp, TimestampError};
pub use directory::{Directory, DirectoryError, Party, Recipient};
pub use id::{BatchId, IdError, KeyId, KmeId, MAX_NAME_BYTES, PoolId, PoolServerId, PoolSetId, SaeId};
pub use key::{Key, KeyLimits, KeyMaterial};
pub use policy::{Admission, KEY_TTL_MAX, RetrievalMode};
pub use provenance::{Demands, FreshKey, Provenance, SourceGrade};
pub use random::{OsRandom, Random, RandomError};
pub use secret::{SecretBytes, Seed, append_wiped};
