//! Why a pool set could not be made or fetched, and who is to blame.

use std::collections::BTreeMap;

use kme::{PoolServerId, RandomError};

use super::client::PoolClientError;

/// Why a set could not be made or fetched.
#[derive(Debug, thiserror::Error)]
pub enum PoolSetError {
    /// Too few servers gave a pool; try later. Pools already made are being released.
    #[error("{answered} pool servers gave a pool, {needed} are needed{}", listed(.missing))]
    TooFewServers {
        /// Servers that gave a pool.
        answered: usize,
        /// Fewest servers of a set.
        needed: usize,
        /// The others, and why they gave none.
        missing: BTreeMap<PoolServerId, String>,
    },
    /// The announcement breaks a rule: the source must change it.
    #[error("the announced pool set is refused: {0}")]
    Refused(String),
    /// The announcement names a server that is under quarantine for sets of its source.
    #[error(
        "pool server {0} is under quarantine here for sets of that site: its pool differed between the sites"
    )]
    Quarantined(PoolServerId),
    /// A pool of the announced set could not be downloaded.
    #[error("a pool of the set could not be fetched")]
    Fetch(#[source] PoolClientError),
    /// The random source failed.
    #[error("the random source failed to give an ID for the pool set")]
    Random(#[from] RandomError),
    /// A task of this daemon ended without a result.
    #[error("the task that made the pool set ended without a result")]
    CutShort,
}

impl PoolSetError {
    /// The pool server that is to blame, if one is.
    pub fn blamed(&self) -> Option<&PoolServerId> {
        match self {
            Self::Quarantined(server) => Some(server),
            // A refusal blames the announcement: the pool may have expired.
            Self::Fetch(PoolClientError::Refused { .. }) => None,
            Self::Fetch(error) if error.blames_server() => Some(error.server()),
            _ => None,
        }
    }
}

/// Why each server gave no pool: an operator sees only this text.
pub(super) fn listed(missing: &BTreeMap<PoolServerId, String>) -> String {
    missing.values().fold(String::new(), |text, reason| text + "; " + reason)
}
