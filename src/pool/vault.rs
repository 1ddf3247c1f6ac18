//! The pool server's state: its pools, who may read each and until when, within fair shares for each KME.
//!
//! Number of pools, their memory and open downloads are shared by the KMEs that use the server: one alone gets
//! at most half of each, and a newcomer always finds some. What counts is what is held, not what is listed: a
//! deleted pool counts until its last download has ended.
//!
//! Pools live in memory only; a restart loses them all, by design. Unknown, foreign and expired pools cannot
//! be told apart from outside. The vault does not know what a pool is used for.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use blast::{MAX_POOL_WORDS, MIN_POOL_WORDS};
use kme::{Clock, FairShares, KmeId, PoolId, Random, RandomError, Taken, Timestamp};
use parking_lot::{Mutex, MutexGuard};

use super::entropy::EntropySource;
use super::locked::{LockedError, LockedWords};

/// Longest time for a download, and so the longest that one keeps a pool in memory after it was deleted or
/// expired. The default pool of 1 MiB takes four seconds at 2 Mbit/s, the default largest one of 8 MiB 34.
const DOWNLOAD_LIFE_MAX: Duration = Duration::from_mins(2);

/// A download that takes no chunk for so long has ended. At 2 Mbit/s a chunk takes a quarter of a second.
const DOWNLOAD_STALL_MAX: Duration = Duration::from_secs(10);

/// Most downloads that may be open at once. Each has one chunk of 64 KiB outside the pools' memory.
const DOWNLOADS_MAX: usize = 512;

/// What a pool server allows.
#[derive(Clone, Debug)]
pub struct VaultLimits {
    /// Most bytes of all pools together. One owner alone gets at most half.
    pub memory_max_bytes: u64,
    /// Most bytes of the pools of one owner.
    pub owner_memory_max_bytes: u64,
    /// Most pools at once. One owner alone gets at most half.
    pub pools_max: usize,
    /// Fewest words of a pool; at least [`MIN_POOL_WORDS`] is enforced.
    pub words_min: usize,
    /// Most words of a pool; at most [`MAX_POOL_WORDS`] is enforced.
    pub words_max: usize,
    /// Longest life of a pool.
    pub ttl_max: Duration,
    /// Most readers of a pool.
    pub readers_max: usize,
    /// The KMEs that may make and read pools; `None` for every KME of the chain.
    pub kmes: Option<BTreeSet<KmeId>>,
}

/// Why the vault refused.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The server's operator has not listed the caller.
    #[error("KME {0} is not listed in [pool] kmes of this pool server's configuration")]
    NotListed(KmeId),
    /// The caller must change the request; the text says what is allowed.
    #[error("{0}")]
    Refused(String),
    /// The quota is used up. Nothing was made; the same request may succeed later.
    #[error("the pool server is full: {0}")]
    Full(&'static str),
    /// There is no such pool for this caller.
    #[error("no such pool")]
    NotFound,
    /// The random source failed; nothing was made.
    #[error("the pool could not be filled")]
    Random(#[from] RandomError),
    /// The system has no memory, whatever the quota says; nothing was made.
    #[error("the pool could not be allocated")]
    Memory(#[from] LockedError),
}

/// What an owner asks for.
#[derive(Clone, Debug)]
pub struct PoolRequest {
    /// 64-bit words; a power of two.
    pub words: usize,
    /// The KMEs that may download the pool. The owner only if it is listed.
    pub readers: Vec<KmeId>,
    /// Life of the pool.
    pub ttl: Duration,
}

/// What the owner learns of a new pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedPool {
    /// The pool's name at this server.
    pub pool_id: PoolId,
    /// When it is erased at the latest.
    pub expires_at: Timestamp,
    /// What it was filled from; see [`EntropySource::name`].
    pub entropy_source: &'static str,
}

/// Downloads of one pool, as its owner sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReads {
    /// One entry for each named reader, in the order of their names.
    pub readers: Vec<ReaderReads>,
}

/// Downloads of one pool by one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderReads {
    /// The reader.
    pub reader: KmeId,
    /// Downloads that began.
    pub started: u64,
    /// Downloads that were sent completely.
    pub completed: u64,
}

/// A pool's bytes and the reservation of their memory.
#[derive(Debug)]
struct Bytes {
    words: LockedWords,
    _place: Taken,
    _memory: Taken,
}

#[derive(Debug, Default)]
struct ReadCount {
    started: AtomicU64,
    completed: AtomicU64,
}

struct Entry {
    owner: KmeId,
    expires_at: Timestamp,
    readers: Vec<(KmeId, Arc<ReadCount>)>,
    bytes: Arc<Bytes>,
}

/// One download's reference to the bytes; the vault takes it away when the download takes too long.
type Slot = Mutex<Source>;

#[derive(Debug)]
struct Source {
    bytes: Option<Arc<Bytes>>,
    deadline: Timestamp,
    /// When the last chunk was taken.
    progress_at: Timestamp,
}

impl Source {
    /// Takes the bytes away if the download takes too long.
    fn end_if_late(&mut self, now: Timestamp) -> Option<Arc<Bytes>> {
        let stalled_at = self.progress_at.plus(DOWNLOAD_STALL_MAX);
        self.bytes.take_if(|_| self.deadline.min(stalled_at) <= now)
    }
}

#[derive(Default)]
struct State {
    pools: HashMap<PoolId, Entry>,
    downloads: Vec<Weak<Slot>>,
}

/// All pools of one server.
pub struct PoolVault {
    limits: VaultLimits,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    entropy: EntropySource,
    places: FairShares<KmeId>,
    memory: FairShares<KmeId>,
    downloads: FairShares<KmeId>,
    made: AtomicU64,
    cut: AtomicU64,
    state: Mutex<State>,
}

impl PoolVault {
    /// An empty vault whose pools are filled from the operating system's generator.
    pub fn new(limits: VaultLimits, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            places: FairShares::new(limits.pools_max),
            memory: FairShares::new(size(limits.memory_max_bytes)),
            downloads: FairShares::new(DOWNLOADS_MAX),
            limits,
            clock,
            entropy: EntropySource::Os(Arc::clone(&random)),
            random,
            made: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Lets `caller` in if it is listed, or if nobody is.
    ///
    /// # Errors
    /// [`VaultError::NotListed`].
    pub fn admit(&self, caller: &KmeId) -> Result<(), VaultError> {
        match &self.limits.kmes {
            Some(listed) if !listed.contains(caller) => Err(VaultError::NotListed(caller.clone())),
            _ => Ok(()),
        }
    }

    /// Checks a request and reserves its memory. Quick: allocates nothing yet.
    ///
    /// # Errors
    /// [`VaultError::Refused`] or [`VaultError::Full`].
    pub fn reserve(
        self: &Arc<Self>,
        owner: &KmeId,
        request: PoolRequest,
    ) -> Result<ReservedPool, VaultError> {
        let readers = self.check(&request)?;
        let now = self.clock.now();
        // What has expired is given back first.
        self.sweep();
        let place = self.places.holder(owner).take(1);
        let place = place.ok_or(VaultError::Full("the caller already has its share of the pools"))?;
        let bytes = request.words.saturating_mul(8);
        let memory = self.memory.holder(owner).take_up_to(bytes, size(self.limits.owner_memory_max_bytes));
        let memory = memory.ok_or(VaultError::Full("the caller already has its share of the memory"))?;
        Ok(ReservedPool {
            vault: Arc::clone(self),
            owner: owner.clone(),
            readers,
            words: request.words,
            expires_at: now.plus(request.ttl),
            place,
            memory,
        })
    }

    /// Makes and fills a pool at once; for callers that may block. See [`Self::reserve`].
    ///
    /// # Errors
    /// Any [`VaultError`] but `NotFound`.
    pub fn create(self: &Arc<Self>, owner: &KmeId, request: PoolRequest) -> Result<CreatedPool, VaultError> {
        self.reserve(owner, request)?.fill()
    }

    /// Opens a pool for one download by a named reader and counts it as started.
    ///
    /// # Errors
    /// [`VaultError::NotFound`] for unknown, foreign and expired pools; [`VaultError::Full`] when the reader
    /// has too many downloads open.
    pub fn open(self: &Arc<Self>, id: PoolId, reader: &KmeId) -> Result<OpenPool, VaultError> {
        let now = self.clock.now();
        let mut dead = Dead::default();
        let mut state = self.lock_swept(now, &mut dead);
        let entry = state.pools.get(&id).ok_or(VaultError::NotFound)?;
        let (_, count) =
            entry.readers.iter().find(|(named, _)| named == reader).ok_or(VaultError::NotFound)?;
        let (bytes, count) = (Arc::clone(&entry.bytes), Arc::clone(count));
        let share = self.downloads.holder(reader).take(1);
        let share = share.ok_or(VaultError::Full("the caller already has its share of the downloads"))?;
        count.started.fetch_add(1, Ordering::Relaxed);
        let len_bytes = bytes.words.len_bytes();
        let source = Source { bytes: Some(bytes), deadline: now.plus(DOWNLOAD_LIFE_MAX), progress_at: now };
        let slot = Arc::new(Mutex::new(source));
        state.downloads.push(Arc::downgrade(&slot));
        Ok(OpenPool { vault: Arc::clone(self), slot, count, len_bytes, next: 0, _share: share })
    }

    /// Erases a pool of `owner` now; downloads under way may finish within their deadline.
    ///
    /// # Errors
    /// [`VaultError::NotFound`] for unknown, foreign and expired pools.
    pub fn delete(&self, id: PoolId, owner: &KmeId) -> Result<(), VaultError> {
        let mut dead = Dead::default();
        let mut state = self.lock_swept(self.clock.now(), &mut dead);
        state.owned(id, owner)?;
        dead.pools.extend(state.pools.remove(&id));
        Ok(())
    }

    /// The downloads of a pool of `owner`.
    ///
    /// # Errors
    /// [`VaultError::NotFound`] for unknown, foreign and expired pools.
    pub fn reads(&self, id: PoolId, owner: &KmeId) -> Result<PoolReads, VaultError> {
        let mut dead = Dead::default();
        let state = self.lock_swept(self.clock.now(), &mut dead);
        let readers = state.owned(id, owner)?.readers.iter();
        Ok(PoolReads {
            readers: readers
                .map(|(reader, count)| ReaderReads {
                    reader: reader.clone(),
                    started: count.started.load(Ordering::Relaxed),
                    completed: count.completed.load(Ordering::Relaxed),
                })
                .collect(),
        })
    }

    /// Erases what has expired and ends overdue downloads. Every access does so too; call it each second, so
    /// that an idle server also erases pools on time.
    pub fn sweep(&self) {
        let mut dead = Dead::default();
        drop(self.lock_swept(self.clock.now(), &mut dead));
    }

    /// Downloads that have not ended.
    pub fn open_downloads(&self) -> usize {
        self.downloads.taken()
    }

    /// Downloads that took too long, since the start.
    pub fn cut_downloads(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Bytes of all pools, including those that a download keeps alive.
    pub fn used_bytes(&self) -> u64 {
        self.memory.taken() as u64
    }

    /// Pools made since the start.
    pub fn made_count(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Pools that can be read now.
    pub fn pool_count(&self) -> usize {
        self.state.lock().pools.len()
    }

    fn check(&self, request: &PoolRequest) -> Result<Vec<KmeId>, VaultError> {
        let min = self.limits.words_min.max(MIN_POOL_WORDS);
        let max = self.limits.words_max.min(MAX_POOL_WORDS);
        let refused = |text: String| Err(VaultError::Refused(text));
        if !request.words.is_power_of_two() || !(min..=max).contains(&request.words) {
            return refused(format!("words must be a power of two from {min} to {max}"));
        }
        if request.ttl.is_zero() || request.ttl > self.limits.ttl_max {
            return refused(format!("ttl must be from 1 to {} seconds", self.limits.ttl_max.as_secs()));
        }
        let readers: BTreeSet<KmeId> = request.readers.iter().cloned().collect();
        if readers.is_empty() || readers.len() > self.limits.readers_max {
            return refused(format!("readers must name 1 to {} KMEs", self.limits.readers_max));
        }
        if let Some(unlisted) = readers.iter().find(|reader| self.admit(reader).is_err()) {
            return refused(format!(
                "reader {unlisted} is not listed in [pool] kmes of this pool server's configuration"
            ));
        }
        Ok(readers.into_iter().collect())
    }

    /// The state, after a sweep. Declare `dead` before the guard, so that large pools are wiped after the
    /// lock is released.
    fn lock_swept(&self, now: Timestamp, dead: &mut Dead) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.sweep(now, dead);
        self.cut.fetch_add(dead.bytes.len() as u64, Ordering::Relaxed);
        state
    }
}

/// What a sweep took out, to be wiped when dropped.
#[derive(Default)]
struct Dead {
    pools: Vec<Entry>,
    bytes: Vec<Arc<Bytes>>,
}

impl State {
    fn sweep(&mut self, now: Timestamp, dead: &mut Dead) {
        dead.pools.extend(self.pools.extract_if(|_, entry| entry.expires_at <= now).map(|(_, entry)| entry));
        self.downloads.retain(|slot| match slot.upgrade() {
            Some(slot) => {
                let ended = slot.lock().end_if_late(now);
                let is_over = ended.is_some();
                dead.bytes.extend(ended);
                !is_over
            }
            None => false,
        });
    }

    fn owned(&self, id: PoolId, owner: &KmeId) -> Result<&Entry, VaultError> {
        self.pools.get(&id).filter(|entry| entry.owner == *owner).ok_or(VaultError::NotFound)
    }
}

/// A pool whose memory is reserved, but not allocated or filled yet.
pub struct ReservedPool {
    vault: Arc<PoolVault>,
    owner: KmeId,
    readers: Vec<KmeId>,
    words: usize,
    expires_at: Timestamp,
    place: Taken,
    memory: Taken,
}

impl ReservedPool {
    /// Allocates, fills and publishes the pool. Blocks: seconds for the largest pools.
    ///
    /// # Errors
    /// [`VaultError::Random`] or [`VaultError::Memory`]; the memory is released.
    pub fn fill(self) -> Result<CreatedPool, VaultError> {
        let Self { vault, owner, readers, words, expires_at, place, memory } = self;
        let mut words = LockedWords::zeroed(words)?;
        vault.entropy.fill(words.as_bytes_mut())?;
        let pool_id = PoolId::draw(&*vault.random)?;
        let entry = Entry {
            owner,
            expires_at,
            readers: readers.into_iter().map(|reader| (reader, Arc::default())).collect(),
            bytes: Arc::new(Bytes { words, _place: place, _memory: memory }),
        };
        vault.state.lock().pools.insert(pool_id, entry);
        vault.made.fetch_add(1, Ordering::Relaxed);
        Ok(CreatedPool { pool_id, expires_at, entropy_source: vault.entropy.name() })
    }
}

/// One download under way.
pub struct OpenPool {
    vault: Arc<PoolVault>,
    slot: Arc<Slot>,
    count: Arc<ReadCount>,
    len_bytes: usize,
    next: usize,
    /// Given back when the client has read everything, or its stream has ended.
    _share: Taken,
}

/// The download took too long, as a whole or for one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the download took longer than the pool server allows")]
pub struct DownloadOverdue;

impl OpenPool {
    /// Length of the whole pool in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Bytes not yet copied out.
    pub fn rest_bytes(&self) -> usize {
        self.len_bytes - self.next
    }

    /// Copies the next bytes to the front of `out`; returns how many, 0 at the end.
    ///
    /// # Errors
    /// [`DownloadOverdue`] when it took too long; this download can get no more bytes.
    pub fn copy_next(&mut self, out: &mut [u8]) -> Result<usize, DownloadOverdue> {
        let now = self.vault.clock.now();
        let mut source = self.slot.lock();
        // Wiped after the lock is released, if this was the last reference.
        let ended = source.end_if_late(now);
        source.progress_at = now;
        let Some(bytes) = source.bytes.clone() else {
            drop(source);
            self.vault.cut.fetch_add(ended.map_or(0, |_| 1), Ordering::Relaxed);
            return Err(DownloadOverdue);
        };
        drop(source);
        let rest = bytes.words.as_bytes().get(self.next..).unwrap_or_default();
        let copied = out.len().min(rest.len());
        if let (Some(to), Some(from)) = (out.get_mut(..copied), rest.get(..copied)) {
            to.copy_from_slice(from);
        }
        self.next += copied;
        if copied > 0 && self.next == self.len_bytes {
            // The last chunk may be on its way for long.
            self.slot.lock().bytes = None;
            self.count.completed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(copied)
    }
}

/// As many as this machine can count.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
