//! What SAEs may do: the three calls of ETSI GS QKD 014, one file each.
//!
//! Decides who is admitted, what a path names and which requests are refused. `supply` makes the keys,
//! `store` keeps them, `http` does JSON and status codes.

mod admission;
mod error;
mod get_key;
mod get_key_with_ids;
mod ports;
mod status;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kme::{Admission, Directory, KeyLimits, RetrievalMode};

pub use self::admission::Caller;
pub use self::error::{DeliveryError, Refusal};
pub use self::get_key::KeyRequest;
pub use self::ports::KeySource;
pub use self::status::Status;
use crate::store::Store;

/// How often a key may be retrieved by ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrievalPolicy {
    /// Once for each party, or until the key expires.
    pub mode: RetrievalMode,
    /// How long the same SAE may repeat a retrieval, in case its answer was lost; zero for never.
    pub replay_window: Duration,
}

/// The rules of one site.
#[derive(Clone, Debug)]
pub struct DeliveryRules {
    /// What an SAE may ask for. Sizes are multiples of eight and contain the default.
    pub limits: KeyLimits,
    /// Which SAEs are served.
    pub admission: Admission,
    /// How often a key may be retrieved.
    pub retrieval: RetrievalPolicy,
    /// How long a retrieval waits at most for its commit to begin. After that it fails, and nothing is used
    /// up.
    pub retrieval_patience: Duration,
    /// Whether a path may name SAEs only, and an empty list of additional slaves is refused.
    pub strict: bool,
}

/// Serves SAEs. Share it in an `Arc`.
pub struct Delivery {
    directory: Arc<ArcSwap<Directory>>,
    rules: DeliveryRules,
    store: Arc<Store>,
    source: Arc<dyn KeySource>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Serves from `store` and `source`. The directory may be swapped at any time; each request sees one
    /// version of it.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        rules: DeliveryRules,
        store: Arc<Store>,
        source: Arc<dyn KeySource>,
    ) -> Self {
        Self { directory, rules, store, source }
    }

    /// What an SAE may ask for.
    pub fn limits(&self) -> &KeyLimits {
        &self.rules.limits
    }
}
