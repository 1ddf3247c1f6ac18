//! Receives batches from peers: checks each, regenerates its keys, stores and acknowledges them; voids keys
//! on request.
//!
//! Trusts nothing in the metadata: checks who may push for whom, sizes, times, names and pools against this
//! site's own configuration before it touches a pool.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use blast::{self, BatchSeeds, EngineError};
use kme::{BatchId, Clock, Directory, Key, KmeId, PoolServerId, Recipient, SaeId, Timestamp};
use mtls::SparingLog;
use mtls::identity::AuthenticatedKme;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub(super) use self::rules::BATCHES_PER_PUSH_MAX;
use self::rules::Checked;
pub use self::rules::{IntakeRules, KEYS_PER_PUSH_MAX};
use super::compare;
use super::meter::SupplyMeter;
use super::{QuotaFull, Quotas};
use crate::peer::content_digest;
use crate::peer::wire::{
    BatchMetadata, BatchStored, ComparisonAnswer, ComparisonRequest, Info, InfoLimits, PROTOCOL_VERSION,
    SetReady, VoidAnswer, VoidRequest,
};
use crate::pool::{AnnouncedSet, PoolSet, PoolSetError, RecipientSetError, RecipientSets, SetTrouble};
use crate::store::{ContentDigest, Entitlement, Inserted, NewBatch, Reserved, Store, StoreError, Tombstone};

/// Batches of one peer being regenerated or stored at once; more wait. So the work of one peer delays that of
/// another by these few at most.
const IN_WORK_MAX: usize = 16;
/// Longest time from the arrival of a push until its keys are about to be stored.
const WORK_MAX: Duration = Duration::from_mins(4);
/// How much longer than a push can still arrive it may take to be stored; longer than [`WORK_MAX`] and the
/// store's own limits.
const STORING_MAX: Duration = Duration::from_mins(5);

/// Why a push was not accepted. The texts are sent to the peer; they hold no metadata beyond names.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The caller is not a configured peer, or speaks for a site that is not its own.
    #[error("{0}")]
    NotAllowed(String),
    /// The push breaks a rule of this site.
    #[error("{0}")]
    Refused(String),
    /// The ID of the batch or of one of its keys is in use here for something else.
    #[error("this site already has this batch ID or key ID with other content")]
    Conflict,
    /// The source voided the batch before it arrived.
    #[error("the batch was voided")]
    Voided,
    /// The pools of the set cannot be downloaded, or must not be used; another set is needed.
    #[error("the pools of the set cannot be downloaded: {message}")]
    SetUnavailable {
        /// Why.
        message: String,
        /// The server that is to blame, if one is.
        server: Option<PoolServerId>,
    },
    /// The source, or the master, has as much stored here as it may have. Nothing was stored or voided.
    #[error(transparent)]
    Full(#[from] QuotaFull),
    /// The set has fewer pools than this site demands.
    #[error(
        "the pool set has {pools} pools, this site accepts keys of {pools_min} or more ([pools] pools_min)"
    )]
    TooFewPools {
        /// How many it has.
        pools: usize,
        /// How many it must have.
        pools_min: usize,
    },
    /// The pools or the metadata of the two sites differ. The set is discarded here.
    #[error("the confirmation value does not match: the pools of the two sites differ; the set is discarded")]
    Mismatch,
    /// No set of that name waits for a comparison.
    #[error("no pool set of that ID waits for a comparison here")]
    NothingToCompare,
    /// No room, or the store is not available. Pushing again later may succeed.
    #[error("{0}")]
    Unavailable(String),
}

impl IntakeError {
    /// What is wrong with the pool set, in a form that the source acts upon.
    pub fn set_trouble(&self) -> Option<SetTrouble> {
        match self {
            Self::SetUnavailable { server: Some(server), .. } => {
                Some(SetTrouble::PoolServers { pool_servers: vec![server.clone()] })
            }
            Self::TooFewPools { pools_min, .. } => Some(SetTrouble::TooFewPools { pools_min: *pools_min }),
            Self::Mismatch => Some(SetTrouble::ConfirmationMismatch),
            _ => None,
        }
    }
}

/// Receives batches from peers. Share it in an `Arc`.
pub struct Intake {
    directory: Arc<ArcSwap<Directory>>,
    rules: IntakeRules,
    sets: Arc<RecipientSets>,
    store: Arc<Store>,
    quotas: Arc<Quotas>,
    clock: Arc<dyn Clock>,
    /// Of each peer.
    in_work: BTreeMap<KmeId, Semaphore>,
    meter: Arc<SupplyMeter>,
    /// For what a peer can repeat.
    log: SparingLog,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Intake {
    /// Accepts what `rules` allow, for the SAEs that `directory` lists.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        rules: IntakeRules,
        sets: Arc<RecipientSets>,
        store: Arc<Store>,
        quotas: Arc<Quotas>,
        clock: Arc<dyn Clock>,
        meter: Arc<SupplyMeter>,
    ) -> Arc<Self> {
        let of_peer = |peer: &KmeId| (peer.clone(), Semaphore::new(IN_WORK_MAX));
        let in_work = directory.load().peers().map(of_peer).collect();
        let log = SparingLog::new("peer");
        Arc::new(Self { directory, rules, sets, store, quotas, clock, in_work, meter, log })
    }

    /// Downloads an announced pool set.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn accept_set(
        &self,
        caller: &AuthenticatedKme,
        announced: &AnnouncedSet,
    ) -> Result<SetReady, IntakeError> {
        let source = self.peer(caller)?;
        let set = self.set(&source, announced).await?;
        tracing::info!(peer = %source, set = %announced.id, words = announced.words, "pool set fetched");
        Ok(SetReady { left_bits: set.left_bits() })
    }

    /// Regenerates the batches of a push and stores them, all or none. Repeating the same push changes nothing.
    ///
    /// # Errors
    /// [`IntakeError`]; then no key of the push is usable here.
    pub async fn accept_batches(
        &self,
        caller: &AuthenticatedKme,
        batches: Vec<BatchMetadata>,
    ) -> Result<Vec<BatchStored>, IntakeError> {
        let source = self.peer(caller)?;
        let number = batches.len();
        let result = self.take(&source, batches).await;
        self.meter.received(&source, number, &result);
        result
    }

    async fn take(
        &self,
        source: &KmeId,
        batches: Vec<BatchMetadata>,
    ) -> Result<Vec<BatchStored>, IntakeError> {
        let arrived = Instant::now();
        let Some(first) = batches.first().filter(|_| batches.len() <= BATCHES_PER_PUSH_MAX) else {
            return Err(IntakeError::Refused(format!("a push has 1 to {BATCHES_PER_PUSH_MAX} batches")));
        };
        if batches.iter().any(|batch| batch.pool_set != first.pool_set) {
            return Err(IntakeError::Refused("all batches of a push are of one pool set".to_owned()));
        }
        let directory = self.directory.load_full();
        let key_ttl_max = self.quotas.key_ttl_max(source);
        let (mut pushed, mut stored, mut rooms) = (Vec::new(), Vec::new(), Vec::new());
        for batch in batches {
            let checked =
                Checked { rules: &self.rules, key_ttl_max, directory: &directory, source, batch: &batch };
            let entitled = checked.entitled_here(self.clock.now())?;
            let content = content_digest(&batch);
            let keys = batch.key_ids.len();
            stored.push(BatchStored { batch_id: batch.batch_id, keys });
            rooms.push(self.quotas.of_peer(source, &batch.master, keys, batch.key_bytes)?);
            pushed.push(Pushed { batch, entitled, content });
        }
        // Only the store knows whether the batches are stored or voided already: another replica may have done
        // that.
        if self.regenerate_and_store(source, pushed, arrived).await? == Inserted::Stored {
            rooms.into_iter().for_each(Reserved::stored);
        }
        Ok(stored)
    }

    async fn regenerate_and_store(
        &self,
        source: &KmeId,
        pushed: Vec<Pushed>,
        arrived: Instant,
    ) -> Result<Inserted, IntakeError> {
        let first = pushed.first().ok_or_else(stopping)?;
        // Before the wait for a place: whoever announces pools that cannot be had delays itself only.
        let set = self.set(source, &first.batch.pool_set).await?;
        let places = u32::try_from(pushed.len()).map_err(|_| stopping())?;
        let permits = self.in_work.get(source).ok_or_else(stopping)?.acquire_many(places);
        let _permits = permits.await.map_err(|_| stopping())?;
        for Pushed { batch, content, .. } in &pushed {
            let bits = blast::output_bits(batch.key_bytes, batch.key_ids.len()).map_err(refused)?;
            set.spend_once(bits, *content).map_err(refused)?;
        }
        let started = Instant::now();
        let made = match regenerate(Arc::clone(&set), pushed, source, &self.log).await {
            Err(IntakeError::Mismatch) => {
                // No key was stored. Whatever the cause, this set has ended here.
                self.sets.discard(source, &set);
                tracing::error!(
                    peer = %source, set = %set.id(),
                    "a pushed batch does not match its confirmation value; its pool set is discarded"
                );
                return Err(IntakeError::Mismatch);
            }
            made => made?,
        };
        self.meter.regenerate(started.elapsed());
        // A tombstone of this batch may have expired since.
        if arrived.elapsed() > WORK_MAX {
            return Err(IntakeError::Unavailable("this KME was too slow to store the batch".to_owned()));
        }
        match self.insert(source, &made).await? {
            Inserted::Stored => {
                self.meter.regenerated(source, made.iter().map(|made| made.keys.len()).sum());
                Ok(Inserted::Stored)
            }
            Inserted::AlreadyStored => Ok(Inserted::AlreadyStored),
            Inserted::Conflict => Err(IntakeError::Conflict),
            Inserted::Voided => Err(IntakeError::Voided),
        }
    }

    /// Compares the pools of a set that was discarded here after a mismatch, and no longer uses the servers
    /// whose pools differ for sets that are shared with the caller. Answers once for each set.
    ///
    /// # Errors
    /// [`IntakeError::NothingToCompare`] for any other set.
    pub async fn compare(
        &self,
        caller: &AuthenticatedKme,
        request: ComparisonRequest,
    ) -> Result<ComparisonAnswer, IntakeError> {
        let source = self.peer(caller)?;
        let set = self.sets.take_aside(&source, request.pool_set).ok_or(IntakeError::NothingToCompare)?;
        let here = compare::digests(set, request.salt).await.map_err(|_| stopping())?;
        let differing = compare::differing(&here, &request.pools);
        compare::judge(self.sets.servers(), &source, request.pool_set, &differing);
        Ok(ComparisonAnswer { pools: here })
    }

    /// Voids keys of the caller that nobody retrieved, and refuses the batch if it arrives later.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn void(
        &self,
        caller: &AuthenticatedKme,
        request: &VoidRequest,
    ) -> Result<VoidAnswer, IntakeError> {
        let source = self.peer(caller)?;
        if request.key_ids.len() > blast::MAX_KEYS_PER_BATCH {
            return Err(IntakeError::Refused(format!(
                "a batch has at most {} keys",
                blast::MAX_KEYS_PER_BATCH
            )));
        }
        // A tombstone outlives every push of its batch, and no longer than that. The batch was made before
        // this void: if the clocks differ by the allowed skew, it seems to be made one skew later. Its push
        // is accepted for another skew, and stored a while after that.
        let until = self.clock.now().plus(2 * self.rules.clock_skew_max + STORING_MAX);
        let (batch_id, key_ids) = (request.batch_id, &request.key_ids);
        let room = self.quotas.tombstone(&source);
        let outcome = if room.is_ok() {
            self.store.void(&source, batch_id, key_ids, until).await
        } else {
            self.store.void_stored(&source, batch_id, key_ids).await
        };
        let outcome = outcome.map_err(|error| unavailable(&error))?;
        match outcome.tombstone {
            Tombstone::NotNeeded => {}
            Tombstone::Left => room?.stored(),
            Tombstone::NotAllowed => drop(room?),
        }
        self.meter.voided(outcome.voided.len(), outcome.kept.len());
        Ok(VoidAnswer { voided: outcome.voided, kept: outcome.kept })
    }

    /// Who this KME is and what it accepts.
    ///
    /// # Errors
    /// [`IntakeError::NotAllowed`] for anyone but a configured peer.
    pub fn info(&self, caller: &AuthenticatedKme) -> Result<Info, IntakeError> {
        self.peer(caller)?;
        Ok(Info {
            kme_id: self.directory.load().local().clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: vec![PROTOCOL_VERSION.to_owned()],
            suites: vec![blast::SUITE.to_owned()],
            clock: self.clock.now(),
            limits: InfoLimits {
                min_key_size: self.rules.limits.min_size_bits,
                max_key_size: self.rules.limits.max_size_bits,
                max_keys_per_batch: blast::MAX_KEYS_PER_BATCH,
                max_batches_per_push: self.rules.batches_per_push(),
                clock_skew_max_secs: self.rules.clock_skew_max.as_secs(),
            },
        })
    }

    /// Erases expired pool sets; call it each second.
    pub fn sweep(&self) {
        self.sets.sweep();
    }

    fn peer(&self, caller: &AuthenticatedKme) -> Result<KmeId, IntakeError> {
        if self.directory.load().is_peer(caller.id()) {
            Ok(caller.id().clone())
        } else {
            Err(IntakeError::NotAllowed(format!("KME {} is not a configured peer of this KME", caller.id())))
        }
    }

    async fn set(&self, source: &KmeId, announced: &AnnouncedSet) -> Result<Arc<PoolSet>, IntakeError> {
        self.sets.get_or_fetch(source, announced).await.map_err(|error| {
            if self.log.allows(source.as_str(), "pool_set") {
                tracing::warn!(
                    peer = %source, set = %announced.id,
                    error = &error as &dyn std::error::Error,
                    "a pool set of a peer cannot be used"
                );
            }
            match error {
                RecipientSetError::Refused(_) => IntakeError::Refused(error.to_string()),
                RecipientSetError::Conflict => IntakeError::Conflict,
                RecipientSetError::TooFewPools { pools, pools_min } => {
                    IntakeError::TooFewPools { pools, pools_min }
                }
                RecipientSetError::Discarded => {
                    IntakeError::SetUnavailable { message: error.to_string(), server: None }
                }
                RecipientSetError::Busy => IntakeError::Unavailable(error.to_string()),
                RecipientSetError::Fetch(cause) => match &*cause {
                    PoolSetError::Refused(_) => IntakeError::Refused(cause.to_string()),
                    other => {
                        let message = match other {
                            PoolSetError::Fetch(pool) => pool.to_string(),
                            other => other.to_string(),
                        };
                        IntakeError::SetUnavailable { message, server: other.blamed().cloned() }
                    }
                },
            }
        })
    }

    async fn insert(&self, source: &KmeId, made: &[Regenerated]) -> Result<Inserted, IntakeError> {
        let batches: Vec<NewBatch<'_>> = made.iter().map(|made| made.as_new(source)).collect();
        self.store.insert_batches(&batches).await.map_err(|error| unavailable(&error))
    }
}

/// A batch that this site's rules allow.
struct Pushed {
    batch: BatchMetadata,
    /// Who may retrieve its keys here.
    entitled: Vec<Entitlement>,
    content: [u8; 32],
}

/// A batch without its seeds, with its keys.
struct Regenerated {
    batch_id: BatchId,
    master: SaeId,
    recipients: Vec<Recipient>,
    entitled: Vec<Entitlement>,
    content: [u8; 32],
    created_at: Timestamp,
    expires_at: Timestamp,
    keys: Vec<Key>,
}

impl Regenerated {
    fn as_new<'a>(&'a self, source: &'a KmeId) -> NewBatch<'a> {
        NewBatch {
            batch_id: self.batch_id,
            source,
            master: &self.master,
            recipients: &self.recipients,
            entitled: &self.entitled,
            content: ContentDigest(self.content),
            created_at: self.created_at,
            expires_at: self.expires_at,
            copy_ends_at: None,
            keys: &self.keys,
        }
    }
}

/// Runs the engine on a blocking thread, so that other tasks go on.
async fn regenerate(
    set: Arc<PoolSet>,
    pushed: Vec<Pushed>,
    source: &KmeId,
    log: &SparingLog,
) -> Result<Vec<Regenerated>, IntakeError> {
    let of_one = move |Pushed { batch, entitled, content }| {
        let seeds = BatchSeeds { seed: batch.seed, mask_seed: batch.mask_seed };
        let keys = blast::regenerate(
            &set.sources(),
            &seeds,
            batch.key_bytes,
            &batch.key_ids,
            batch.words_per_pool,
            &batch.confirm,
        )?;
        Ok(Regenerated {
            batch_id: batch.batch_id,
            master: batch.master,
            recipients: batch.recipients,
            entitled,
            content,
            created_at: batch.created_at,
            expires_at: batch.expires_at,
            keys,
        })
    };
    let work = move || pushed.into_iter().map(of_one).collect::<Result<Vec<_>, _>>();
    match tokio::task::spawn_blocking(work).await {
        Ok(made) => made.map_err(|error: EngineError| match error {
            EngineError::ConfirmMismatch => IntakeError::Mismatch,
            error => {
                // The same push costs its source nothing when it comes again.
                if log.allows(source.as_str(), "regenerate") {
                    tracing::error!(peer = %source, %error, "a pushed batch cannot be regenerated");
                }
                refused(error)
            }
        }),
        Err(_) => Err(stopping()),
    }
}

fn refused(error: EngineError) -> IntakeError {
    IntakeError::Refused(error.to_string())
}

fn stopping() -> IntakeError {
    IntakeError::Unavailable("the KME is stopping".to_owned())
}

fn unavailable(error: &StoreError) -> IntakeError {
    tracing::error!(error = error as &dyn std::error::Error, "a pushed batch could not be stored or voided");
    IntakeError::Unavailable(error.public_message().to_owned())
}
