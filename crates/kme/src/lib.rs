//! The types of a Key Management Entity, and the rules of a key's life.
//!
//! For all code that handles keys: identifiers, keys, parties, limits, time and randomness, as plain types
//! that hold only valid values; and [`life`], the decisions on pushes, voids, retrievals and handing out.
//!
//! It does no I/O (except to read the system's clock and random generator), is not async, and knows nothing
//! of messages and tables. Secrets are wiped when dropped and cannot be printed or cloned.
//!
//! # Example
//!
//! May an SAE retrieve a key for the second time?
//!
//! ```
//! use std::time::Duration;
//!
//! use kme::life::{Claim, EarlierUse, Terms, claim};
//! use kme::{RetrievalMode, Timestamp};
//!
//! let terms = Terms { mode: RetrievalMode::Once, replay_window: Duration::from_secs(30) };
//! let first = Timestamp::parse("2026-01-01T12:00:00Z").unwrap();
//! assert_eq!(claim(None, terms, first), Claim::Take);
//!
//! // The answer was lost. The same SAE may repeat the request within the replay window.
//! let earlier = Some(EarlierUse { by_same_caller: true, at: first });
//! assert_eq!(claim(earlier, terms, first.plus(Duration::from_secs(5))), Claim::Repeat);
//! assert_eq!(claim(earlier, terms, first.plus(Duration::from_secs(30))), Claim::Spent);
//! ```

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
mod share;

pub use backoff::Backoff;
pub use causes::causes;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp, TimestampError};
pub use directory::{Directory, DirectoryError, Party, Recipient};
pub use id::{
    BatchId, IdError, KeyId, KmeId, MAX_NAME_BYTES, PoolId, PoolServerId, PoolSetId, SaeId,
    is_spiffe_segment, is_trust_domain, is_visible,
};
pub use key::{Key, KeyLimits, KeyMaterial};
pub use policy::{Admission, KEY_TTL_MAX, RetrievalMode};
pub use provenance::{Demands, FreshKey, Provenance, SourceGrade};
pub use random::{OsRandom, Random, RandomError};
pub use secret::{SecretBytes, Seed, append_wiped};
pub use share::{FairShares, Holder, Taken};
