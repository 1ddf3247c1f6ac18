//! The pool sets that other sites made for this one: downloaded once, kept until they expire.
//!
//! Bounded in number for each source and in memory for all, so that no peer can fill this site.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kme::{Clock, KmeId, PoolSetId, Timestamp};
use parking_lot::Mutex;

use super::flight::Flight;
use super::quota::Quota;
use super::servers::{PoolServers, PoolSetError};
use super::set::{AnnouncedSet, PoolSet};

/// Bounds on the sets that other sites announce.
#[derive(Clone, Debug)]
pub struct RecipientSetsSettings {
    /// Most sets of one source site.
    pub sets_per_source_max: usize,
    /// Most words of a pool.
    pub words_max: usize,
    /// Longest remaining life of an announced set.
    pub life_max: Duration,
    /// Most bytes of all sets together.
    pub memory_max_bytes: u64,
}

/// Why a set cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecipientSetError {
    /// The source must announce something else.
    #[error("the pool set is refused: {0}")]
    Refused(&'static str),
    /// Another set of that name, with other content, was announced before.
    #[error("the pool set was announced before with other content")]
    Conflict,
    /// No room; the source may try later.
    #[error("no room for another pool set")]
    Busy,
    /// The download failed, for the reason in `source`.
    #[error("the pool set could not be fetched")]
    Fetch(#[source] Arc<PoolSetError>),
}

type Fetched = Result<Arc<PoolSet>, RecipientSetError>;

struct Held {
    announced: AnnouncedSet,
    flight: Flight<Fetched>,
}

/// Sets by their source and name.
type Sets = HashMap<(KmeId, PoolSetId), Held>;

/// All pool sets of other sites.
pub struct RecipientSets {
    servers: Arc<PoolServers>,
    settings: RecipientSetsSettings,
    clock: Arc<dyn Clock>,
    memory: Arc<Quota>,
    sets: Mutex<Sets>,
}

impl RecipientSets {
    /// No sets yet.
    pub fn new(
        servers: Arc<PoolServers>,
        settings: RecipientSetsSettings,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let memory = Quota::new(settings.memory_max_bytes);
        Arc::new(Self { servers, settings, clock, memory, sets: Mutex::default() })
    }

    /// The set that `source` announced, downloaded now if it is not here. Concurrent callers share one
    /// download, which continues if they leave.
    ///
    /// # Errors
    /// [`RecipientSetError`]; a failed download is forgotten, so that a later call tries again.
    pub async fn get_or_fetch(
        self: &Arc<Self>,
        source: &KmeId,
        announced: &AnnouncedSet,
    ) -> Result<Arc<PoolSet>, RecipientSetError> {
        let flight = self.flight(source, announced)?;
        let set = flight.wait().await.unwrap_or_else(|| Err(cut_short()))?;
        // It may have expired during the wait.
        if set.expires_at() <= self.clock.now() {
            return Err(RecipientSetError::Refused("it has expired (compare the clocks)"));
        }
        Ok(set)
    }

    /// Erases expired sets; call it each second. Sets still in use are erased when their last user drops
    /// them.
    pub fn sweep(&self) {
        let dead = sweep(&mut self.sets.lock(), self.clock.now());
        drop(dead);
    }

    /// Sets held or being fetched.
    pub fn count(&self) -> usize {
        self.sets.lock().len()
    }

    /// Bytes of all sets, including those just being fetched.
    pub fn used_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }

    fn flight(
        self: &Arc<Self>,
        source: &KmeId,
        announced: &AnnouncedSet,
    ) -> Result<Flight<Fetched>, RecipientSetError> {
        let now = self.clock.now();
        self.check(announced, now)?;
        // Declared before the guard, so that large pools are wiped after the lock is released.
        let mut dead;
        let mut sets = self.sets.lock();
        dead = sweep(&mut sets, now);
        let key = (source.clone(), announced.id);
        if let Some(held) = sets.get(&key) {
            return if held.announced == *announced {
                Ok(held.flight.clone())
            } else {
                Err(RecipientSetError::Conflict)
            };
        }
        while sets.keys().filter(|(of, _)| of == source).count() >= self.settings.sets_per_source_max {
            dead.push(evict_of(&mut sets, source).ok_or(RecipientSetError::Busy)?);
        }
        let bytes = (announced.words as u64).saturating_mul(8 * announced.pools.len() as u64);
        let granted = loop {
            if let Some(granted) = self.memory.reserve(bytes) {
                break granted;
            }
            // Evicts only a set of the same source, and wipes it before its memory counts as free.
            drop(evict_of(&mut sets, source).ok_or(RecipientSetError::Busy)?);
        };
        let (sets_here, wanted, own_key) = (Arc::clone(self), announced.clone(), key.clone());
        let flight = Flight::start(async move {
            match sets_here.servers.fetch_set(&wanted).await {
                Ok(set) => Ok(Arc::new(set.with_grant(granted))),
                Err(error) => {
                    sets_here.sets.lock().remove(&own_key);
                    Err(RecipientSetError::Fetch(Arc::new(error)))
                }
            }
        });
        sets.insert(key, Held { announced: announced.clone(), flight: flight.clone() });
        Ok(flight)
    }

    fn check(&self, announced: &AnnouncedSet, now: Timestamp) -> Result<(), RecipientSetError> {
        if announced.expires_at <= now {
            return Err(RecipientSetError::Refused("it has expired (compare the clocks)"));
        }
        if announced.expires_at.since(now) > self.settings.life_max {
            return Err(RecipientSetError::Refused("it would live longer than this site allows"));
        }
        if announced.words > self.settings.words_max {
            return Err(RecipientSetError::Refused("its pools are larger than this site allows"));
        }
        Ok(())
    }
}

fn cut_short() -> RecipientSetError {
    RecipientSetError::Fetch(Arc::new(PoolSetError::CutShort))
}

/// Takes out the sets that have expired and those that a dead task left behind.
fn sweep(sets: &mut Sets, now: Timestamp) -> Vec<Held> {
    let gone = |held: &Held| {
        let died = held.flight.is_over() && held.flight.landed().is_none();
        died || held.announced.expires_at <= now
    };
    sets.extract_if(|_, held| gone(held)).map(|(_, held)| held).collect()
}

/// Takes out the set of `source` that expires first; downloads under way stay.
fn evict_of(sets: &mut Sets, source: &KmeId) -> Option<Held> {
    let oldest = sets
        .iter()
        .filter(|((of, _), held)| of == source && held.flight.is_over())
        .min_by_key(|(_, held)| held.announced.expires_at)
        .map(|(key, _)| key.clone())?;
    sets.remove(&oldest)
}
