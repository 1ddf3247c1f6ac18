//! A pool set as a site holds it: the downloaded pools and what may still be drawn from them.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use blast::{Budget, EngineError, SourcePool};
use kme::{KmeId, PoolId, PoolServerId, PoolSetId, Timestamp};

use sha3::{Digest as _, Sha3_256};

use super::locked::LockedWords;
use super::quota::Reservation;

/// One downloaded pool.
#[derive(Debug)]
pub struct HeldPool {
    /// The server that made it.
    pub server: PoolServerId,
    /// Its ID there, which is bound into every extraction.
    pub id: PoolId,
    /// Its words.
    pub words: LockedWords,
    /// What the server says it was filled from. Only the source of the set knows it.
    pub entropy_source: Option<String>,
}

/// The name of one pool and of its server, as sites send it to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedPool {
    /// The server, by its configured name. Addresses never come from the wire.
    pub server: PoolServerId,
    /// The pool's name there.
    pub id: PoolId,
}

/// A pool set as its source announces it to the recipients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedSet {
    /// The set's name.
    pub id: PoolSetId,
    /// The pools, in the order that every extraction takes them.
    pub pools: Vec<AnnouncedPool>,
    /// Words of each pool.
    pub words: usize,
    /// When the set must no longer be used.
    pub expires_at: Timestamp,
}

/// Why a recipient cannot use a set, where the source can do something about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum SetTrouble {
    /// The confirmation value of a batch did not match. The recipient has discarded the set.
    ConfirmationMismatch,
    /// The recipient could not download from these servers, or has them under quarantine.
    PoolServers {
        /// Their names; at least one.
        pool_servers: Vec<PoolServerId>,
    },
    /// The recipient demands more pools.
    TooFewPools {
        /// How many at least.
        pools_min: usize,
    },
}

/// Separates the digest of a pool from every other use of the hash.
const COMPARISON_DOMAIN: &[u8] = b"dqkd pool comparison 1\0";

/// How much may still be drawn from a set, and which batches a recipient has already charged.
#[derive(Debug)]
struct Account {
    budget: Budget,
    /// Digests of their contents. The budget bounds their number, since each batch costs more than 128 bits.
    batches: HashSet<[u8; 32]>,
}

/// Pools on several servers, held in memory, with the budget of bits that may be drawn from them.
#[derive(Debug)]
pub struct PoolSet {
    id: PoolSetId,
    recipients: BTreeSet<KmeId>,
    pools: Vec<HeldPool>,
    words: usize,
    created_at: Timestamp,
    expires_at: Timestamp,
    account: Mutex<Account>,
    total_bits: u64,
    granted: Option<Reservation>,
    /// The recipients that its pools were compared with after a mismatch.
    compared: tokio::sync::Mutex<BTreeSet<KmeId>>,
    is_proven: AtomicBool,
    has_alarm: AtomicBool,
}

impl PoolSet {
    /// A set of downloaded pools of `words` words each, with a full budget.
    pub(super) fn new(
        announced: &AnnouncedSet,
        recipients: BTreeSet<KmeId>,
        pools: Vec<HeldPool>,
        created_at: Timestamp,
    ) -> Self {
        let budget = Budget::for_pool_words(announced.words);
        Self {
            id: announced.id,
            recipients,
            pools,
            words: announced.words,
            created_at,
            expires_at: announced.expires_at,
            total_bits: budget.left_bits(),
            account: Mutex::new(Account { budget, batches: HashSet::new() }),
            granted: None,
            compared: tokio::sync::Mutex::default(),
            is_proven: AtomicBool::new(false),
            has_alarm: AtomicBool::new(false),
        }
    }

    /// Keeps the reservation of the set's memory until the set is dropped.
    pub(super) fn with_grant(mut self, granted: Reservation) -> Self {
        self.granted = Some(granted);
        self
    }

    /// The set's name.
    pub fn id(&self) -> PoolSetId {
        self.id
    }

    /// The remote sites that hold the same pools. Empty at a recipient, which does not need them.
    pub fn recipients(&self) -> &BTreeSet<KmeId> {
        &self.recipients
    }

    /// Words of each pool.
    pub fn words(&self) -> usize {
        self.words
    }

    /// What its pools were filled from, as far as this site knows.
    pub fn entropy_sources(&self) -> BTreeSet<String> {
        self.pools.iter().filter_map(|pool| pool.entropy_source.clone()).collect()
    }

    /// Number of pools.
    pub fn pool_count(&self) -> usize {
        self.pools.len()
    }

    /// When this site began to make or fetch the set.
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// When the set must no longer be used.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// What to tell recipients of the set.
    pub fn announcement(&self) -> AnnouncedSet {
        let pool = |held: &HeldPool| AnnouncedPool { server: held.server.clone(), id: held.id };
        AnnouncedSet {
            id: self.id,
            pools: self.pools.iter().map(pool).collect(),
            words: self.words,
            expires_at: self.expires_at,
        }
    }

    /// The pools as the engine takes them, in the order of the announcement.
    pub fn sources(&self) -> Vec<SourcePool<'_>> {
        self.pools.iter().map(|pool| SourcePool { id: pool.id, words: pool.words.as_words() }).collect()
    }

    /// Whether one of the pools is of `server`.
    pub fn uses(&self, server: &PoolServerId) -> bool {
        self.pools.iter().any(|pool| pool.server == *server)
    }

    /// For each pool, SHA3-256 of `salt`, its names, its length and its bytes: two sites find out with it
    /// whose pool differs.
    ///
    /// Send it only for a set that is discarded. While keys may still be made of a pool, its digest would let
    /// whoever knows most of the pool test guesses of the rest, chosen by what they saw of a batch. Once no
    /// key can follow, 256 bits of hash are far less than the quarter of a pool that may leak of it
    /// (`docs/blast-engine.md`, section 3), and they travel between two sites that have the pool anyway.
    pub fn digests(&self, salt: &[u8; 32]) -> Vec<(AnnouncedPool, [u8; 32])> {
        let digest = |pool: &HeldPool| {
            let mut hash = Sha3_256::new_with_prefix(COMPARISON_DOMAIN);
            hash.update(salt);
            let name = pool.server.as_str().as_bytes();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(pool.id.as_bytes());
            hash.update((pool.words.len_bytes() as u64).to_le_bytes());
            for word in pool.words.as_words() {
                hash.update(word.to_le_bytes());
            }
            (AnnouncedPool { server: pool.server.clone(), id: pool.id }, hash.finalize().into())
        };
        self.pools.iter().map(digest).collect()
    }

    /// The recipients that the pools were compared with. Held while a comparison is under way.
    pub fn compared(&self) -> &tokio::sync::Mutex<BTreeSet<KmeId>> {
        &self.compared
    }

    /// Notes that every recipient confirmed a batch of the set.
    pub fn note_proof(&self) {
        self.is_proven.store(true, Ordering::Relaxed);
    }

    /// Whether every recipient confirmed a batch of it.
    pub fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    /// Notes that somebody read a pool of the set who should not have; `true` the first time.
    pub(super) fn raise_alarm(&self) -> bool {
        !self.has_alarm.swap(true, Ordering::Relaxed)
    }

    /// Whether such an alarm was raised.
    pub(super) fn has_alarm(&self) -> bool {
        self.has_alarm.load(Ordering::Relaxed)
    }

    /// Takes `bits` out of the budget, all or nothing. Every site keeps its own account.
    ///
    /// # Errors
    /// [`EngineError`] when fewer are left; nothing is taken then.
    pub fn spend(&self, bits: u64) -> Result<(), EngineError> {
        self.account.lock().budget.spend(bits)
    }

    /// As [`Self::spend`], for a batch with this digest of its content; a batch that comes again costs
    /// nothing.
    ///
    /// # Errors
    /// As for [`Self::spend`].
    pub fn spend_once(&self, bits: u64, content: [u8; 32]) -> Result<(), EngineError> {
        let mut account = self.account.lock();
        if !account.batches.contains(&content) {
            account.budget.spend(bits)?;
            account.batches.insert(content);
        }
        Ok(())
    }

    /// Bits that may still be drawn.
    pub fn left_bits(&self) -> u64 {
        self.account.lock().budget.left_bits()
    }

    /// Bits that could be drawn when the set was new.
    pub fn total_bits(&self) -> u64 {
        self.total_bits
    }
}
