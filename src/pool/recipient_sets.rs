//! The pool sets that other sites made for this one: downloaded once, kept until they expire.
//!
//! Bounded in number for each source and in memory for all, so that no peer can fill this site. A set whose
//! pools proved to differ from the source's is refused from then on; it is kept aside for a moment, to find out
//! whose pool differs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kme::{Clock, KmeId, PoolSetId, Timestamp};
use parking_lot::Mutex;

use super::error::PoolSetError;
use super::flight::Flight;
use super::quota::Quota;
use super::servers::PoolServers;
use super::set::{AnnouncedSet, PoolSet};

/// How long the pools of a discarded set are kept for a comparison.
const ASIDE: Duration = Duration::from_mins(1);

/// Most sets of one source whose pools are kept so.
const ASIDES_PER_SOURCE_MAX: usize = 4;

/// Most discarded sets that are remembered of one source; more than it can have at once.
const DISCARDED_PER_SOURCE_MAX: usize = 64;

/// Bounds on the sets that other sites announce.
#[derive(Clone, Debug)]
pub struct RecipientSetsSettings {
    /// Most sets of one source site.
    pub sets_per_source_max: usize,
    /// Fewest pools of a set.
    pub pools_min: usize,
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
    /// The set has fewer pools than this site demands.
    #[error("the pool set is refused: it has {pools} pools, this site demands {pools_min}")]
    TooFewPools {
        /// How many it has.
        pools: usize,
        /// How many it must have.
        pools_min: usize,
    },
    /// The set was discarded: its pools here differ from those at the source.
    #[error("the pool set was discarded here: its pools differ from those at the source")]
    Discarded,
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

/// A set's source and name.
type SetKey = (KmeId, PoolSetId);
type Sets = HashMap<SetKey, Held>;

/// A set that was discarded because its pools differ from the source's.
struct Discarded {
    /// The name is refused until then.
    expires_at: Timestamp,
    /// The pools, for one comparison. No key is made of them any more.
    aside: Option<(Timestamp, Arc<PoolSet>)>,
}

/// All pool sets of other sites.
pub struct RecipientSets {
    servers: Arc<PoolServers>,
    settings: RecipientSetsSettings,
    clock: Arc<dyn Clock>,
    memory: Arc<Quota>,
    sets: Mutex<Sets>,
    discarded: Mutex<HashMap<SetKey, Discarded>>,
}

impl RecipientSets {
    /// No sets yet.
    pub fn new(
        servers: Arc<PoolServers>,
        settings: RecipientSetsSettings,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let memory = Quota::new(settings.memory_max_bytes);
        Arc::new(Self {
            servers,
            settings,
            clock,
            memory,
            sets: Mutex::default(),
            discarded: Mutex::default(),
        })
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
        let now = self.clock.now();
        let dead = sweep(&mut self.sets.lock(), now);
        let mut discarded = self.discarded.lock();
        discarded.retain(|_, set| set.expires_at > now);
        let over = |aside: &mut (Timestamp, Arc<PoolSet>)| aside.0 <= now;
        let asides: Vec<_> = discarded.values_mut().map(|set| set.aside.take_if(over)).collect();
        drop(discarded);
        drop((dead, asides));
    }

    /// Discards a set because a batch proved that its pools differ from those at `source`: no key is made of
    /// it any more, and its name is refused. Its pools are kept for [`Self::take_aside`].
    pub fn discard(&self, source: &KmeId, set: &Arc<PoolSet>) {
        let now = self.clock.now();
        let key = (source.clone(), set.id());
        let mut discarded = self.discarded.lock();
        if discarded.contains_key(&key) {
            return;
        }
        let mut evicted = Vec::new();
        // A source that lies can only push out what was noted of its own sets.
        while discarded.keys().filter(|(of, _)| of == source).count() >= DISCARDED_PER_SOURCE_MAX {
            let of_source = discarded.iter().filter(|((of, _), _)| of == source);
            let Some(first) = of_source.min_by_key(|(_, set)| set.expires_at).map(|(key, _)| key.clone())
            else {
                break;
            };
            evicted.extend(discarded.remove(&first));
        }
        let mut asides: Vec<_> = discarded
            .iter_mut()
            .filter(|((of, _), noted)| of == source && noted.aside.is_some())
            .map(|(_, noted)| &mut noted.aside)
            .collect();
        asides.sort_by_key(|aside| aside.as_ref().map(|(until, _)| *until));
        let surplus = (asides.len() + 1).saturating_sub(ASIDES_PER_SOURCE_MAX);
        let dropped: Vec<_> = asides.into_iter().take(surplus).map(Option::take).collect();
        let aside = Some((now.plus(ASIDE), Arc::clone(set)));
        discarded.insert(key.clone(), Discarded { expires_at: set.expires_at(), aside });
        drop(discarded);
        // Its name is refused already, so nobody fetches it again.
        let held = self.sets.lock().remove(&key);
        drop((held, evicted, dropped));
    }

    /// The pools of a set that this site discarded within the last minute. Only once for each set.
    pub fn take_aside(&self, source: &KmeId, id: PoolSetId) -> Option<Arc<PoolSet>> {
        let now = self.clock.now();
        let (until, set) = self.discarded.lock().get_mut(&(source.clone(), id))?.aside.take()?;
        (now < until).then_some(set)
    }

    /// The pool servers that sets are fetched from.
    pub fn servers(&self) -> &Arc<PoolServers> {
        &self.servers
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
        if self.discarded.lock().contains_key(&key) {
            return Err(RecipientSetError::Discarded);
        }
        while sets.keys().filter(|(of, _)| of == source).count() >= self.settings.sets_per_source_max {
            dead.push(evict_of(&mut sets, source).ok_or(RecipientSetError::Busy)?);
        }
        let bytes = bytes_of(announced);
        let granted = loop {
            if let Some(granted) = self.memory.reserve(bytes) {
                break granted;
            }
            // The set is wiped before its memory counts as free.
            drop(evict_for(&mut sets, source, bytes).ok_or(RecipientSetError::Busy)?);
        };
        let (sets_here, wanted, own_key) = (Arc::clone(self), announced.clone(), key.clone());
        let flight = Flight::start(async move {
            match sets_here.servers.fetch_set(&own_key.0, &wanted).await {
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
        let (pools, pools_min) = (announced.pools.len(), self.settings.pools_min);
        if pools < pools_min {
            return Err(RecipientSetError::TooFewPools { pools, pools_min });
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

fn bytes_of(announced: &AnnouncedSet) -> u64 {
    (announced.words as u64).saturating_mul(8 * announced.pools.len() as u64)
}

/// Takes out a set to make room for a new one of `source` with `bytes`: of the source that holds most, if that
/// is more than `source` would hold then, else one of its own. So nobody fills the memory for good.
fn evict_for(sets: &mut Sets, source: &KmeId, bytes: u64) -> Option<Held> {
    let mut held = HashMap::<KmeId, u64>::new();
    for ((of, _), set) in sets.iter() {
        *held.entry(of.clone()).or_default() += bytes_of(&set.announced);
    }
    let own = held.remove(source).unwrap_or_default();
    let greediest = held.into_iter().max_by_key(|(_, bytes)| *bytes);
    let greediest = greediest.filter(|(_, most)| *most > own.saturating_add(bytes));
    greediest.and_then(|(of, _)| evict_of(sets, &of)).or_else(|| evict_of(sets, source))
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
