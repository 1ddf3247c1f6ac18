//! Keys at rest: all SQL, the sealing of keys, who may retrieve a key and how often.
//!
//! Owns the database and its schema (`docs/data-model.md` explains the tables). Knows nothing of HTTP, of
//! peers, or of where batches come from. Never writes a key unsealed, and never returns a key before the
//! commit that uses up its retrieval.
//!
//! | room | what it does |
//! |---|---|
//! | `connection` | addresses and connections, SQLite and Postgres, schema versions |
//! | `sealing` | key-encryption keys, data keys, seals |
//! | `record` | a batch at rest: what is sealed and what may change |
//! | `verbs` | what can be done to keys, within a transaction |
//! | `writer` | the queue, transactions, commits |
//! | `copy` | a whole store to another database |
//! | `carry_over` | what an older release stored, into records |

mod carry_over;
mod connection;
mod copy;
mod demo;
mod error;
mod meter;
mod record;
mod sealing;
mod types;
mod usage;
mod verbs;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kme::{BatchId, Clock, Key, KeyId, KmeId, OsRandom, Random, SourceGrade, Timestamp};
use sqlx::Connection;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span, warn};

use self::carry_over::carry_over;
use self::connection::{Address, BE_HASTY, BE_PATIENT, Dialect, Link, Reader, prepare_schema};
pub use self::copy::Copied;
pub use self::demo::replace_demo_schema;
pub use self::error::{RetrieveError, StoreError};
use self::meter::Meter;
use self::record::Ready;
pub use self::sealing::{DataKey, DataKeyId, KekError, KeyEncryptionKeys, RecordSeal, SealError, Sealer};
pub use self::types::{
    ContentDigest, Entitlement, Inserted, LeasedBlock, NewBatch, ReadyPair, ReadyVoid, Retrieval,
    RetrievalMode, ReturnedBlock, Role, Swept, Tombstone, VoidOutcome,
};
pub use self::usage::{Excess, Owner, Reserved, Stored, Usage};
use self::verbs::{
    GiveBack, Insert, Lease, PairText, Retrieve, Sweep, Verb, Void, VoidUnlessLeased, check_data_keys,
    count_batches, count_tombstones,
};
pub use self::verbs::{MAX_BATCHES_PER_INSERT, MAX_KEYS_PER_RETRIEVAL};
use self::writer::{Answer, CommitRace, GiveUpOnDrop, Job, POSTGRES_WRITERS, Queue, Writer, WriterParts};
use crate::metrics::Registry;

/// Longest time that a call waits for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A piece of a count is followed by a pause so many times as long.
const COUNT_PAUSE: u32 = 32;
/// Longest time that closing waits for the writers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

const PING: &str = "SELECT 1 FROM records LIMIT 1";

/// Where the store is and how it is sealed.
#[derive(Clone)]
pub struct StoreSettings {
    /// `sqlite://FILE`, relative to the working directory or absolute, or `postgres://...`
    /// (docs/configuration.md). May hold a password.
    pub url: String,
    /// Whose keys these are. What was sealed for another KME does not open.
    pub kme: KmeId,
    /// The keys that wrap data keys.
    pub keks: KeyEncryptionKeys,
    /// Whether to create the database and bring its schema up to date.
    pub migrate: bool,
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings").field("migrate", &self.migrate).finish_non_exhaustive()
    }
}

/// The store of one site. Share it in an `Arc`.
pub struct Store {
    queue: mpsc::Sender<Job>,
    stopping: CancellationToken,
    writers: TaskTracker,
    reader: Reader,
    /// Whether other daemons may use the same database.
    is_shared: bool,
    sealer: Arc<Sealer>,
    clock: Arc<dyn Clock>,
    meter: Arc<Meter>,
    usage: Arc<Usage>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store. Needs a tokio runtime, where its writers are tasks.
    ///
    /// # Errors
    /// [`StoreError::Settings`] for a bad URL or path, [`StoreError::Schema`] for a schema that is newer than
    /// this program (or older, without `migrate`), [`StoreError::Seal`] if the KEK of the newest data key was
    /// not given, or any failure of the database.
    pub async fn open(
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, StoreError> {
        let span = info_span!("db.open");
        async move {
            let address = Arc::new(Address::parse(&settings.url)?);
            let (link, sealer) = prepare(&address, settings, Arc::clone(&random), clock.now()).await?;
            let sealer = Arc::new(sealer);
            let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
            let (queue, jobs) = Queue::new(stopping.clone());
            let mut link = Some(link);
            let meter = Arc::new(Meter::default());
            let writers = match address.dialect() {
                Dialect::Sqlite => 1,
                Dialect::Postgres => POSTGRES_WRITERS,
            };
            let parts = WriterParts {
                address: Arc::clone(&address),
                sealer: Arc::clone(&sealer),
                clock: Arc::clone(&clock),
                random,
                meter: Arc::clone(&meter),
            };
            for _ in 0..writers {
                let writer = Writer::new(parts.clone(), link.take())?;
                tasks.spawn(writer.run(Arc::clone(&jobs)));
            }
            let is_shared = address.dialect() == Dialect::Postgres;
            let (reader, usage) = (Reader::new(address), Arc::default());
            Ok(Self { queue, stopping, writers: tasks, reader, is_shared, sealer, clock, meter, usage })
        }
        .instrument(span)
        .await
    }

    /// Registers the store's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.meter.register(registry, self.queue.downgrade());
    }

    /// Creates the database if it is missing, and brings it up to date.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn migrate(settings: StoreSettings, now: Timestamp) -> Result<(), StoreError> {
        let address = Address::parse(&settings.url)?;
        let settings = StoreSettings { migrate: true, ..settings };
        let (link, _) = prepare(&address, settings, Arc::new(OsRandom), now).await?;
        Ok(link.into_inner().close().await?)
    }

    /// Checks the form of a store's URL, without a connection. Accepts any SQLite path: the file may be made
    /// later.
    ///
    /// # Errors
    /// [`StoreError::Settings`] with the reason, without repeating the URL.
    pub fn check_url(url: &str) -> Result<(), StoreError> {
        if url.starts_with("sqlite:") { Ok(()) } else { Address::parse(url).map(|_| ()) }
    }

    /// Stores 1 to [`MAX_BATCHES_PER_INSERT`] batches in one transaction: all, or none if one of them is neither
    /// new nor already stored. Storing the same content again changes nothing.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was stored. After [`StoreError::Uncertain`], repeat the call to find out.
    pub async fn insert_batches(&self, batches: &[NewBatch<'_>]) -> Result<Inserted, StoreError> {
        if batches.iter().any(|batch| batch.entitled.is_empty()) {
            return Err(StoreError::Misuse("a batch that nobody here may retrieve"));
        }
        self.insert(batches, None).await
    }

    /// Stores batches, each of which must have one recipient, and lists their keys as ready: they can be leased
    /// until `usable_until`.
    ///
    /// # Errors
    /// As for [`Self::insert_batches`].
    pub async fn insert_ready(
        &self,
        batches: &[NewBatch<'_>],
        grade: &SourceGrade,
        usable_until: Timestamp,
    ) -> Result<Inserted, StoreError> {
        if batches.iter().any(|batch| batch.recipients.len() != 1) {
            return Err(StoreError::Misuse("ready keys are for one recipient"));
        }
        self.insert(batches, Some(&Ready::new(usable_until, grade.clone()))).await
    }

    /// Takes up to `blocks` blocks of a pair's ready keys out of the store, earliest end first. Returns them
    /// after the commit: no other call, process or restart gets them again. The master's copies of these keys
    /// stay for `master_ttl` after they may last be handed out.
    ///
    /// # Errors
    /// [`StoreError`]; the keys are still ready. After [`StoreError::Uncertain`] they may be lost.
    pub async fn lease(
        &self,
        pair: ReadyPair<'_>,
        blocks: u32,
        master_ttl: Duration,
    ) -> Result<Vec<LeasedBlock>, StoreError> {
        let span = info_span!("db.lease", sae.id = %pair.master, blocks);
        let lease = Lease { pair: PairText::of(pair)?, blocks, master_ttl };
        Ok(self.call(lease).instrument(span).await?.blocks)
    }

    /// Gives back leased keys that were not handed out, all blocks in one commit. If this store does not have
    /// their batch, or no longer, it stores them again under the same batch ID.
    ///
    /// # Errors
    /// [`StoreError`]. Do not repeat the call: it may have succeeded, and the keys may be leased again.
    pub async fn give_back(&self, blocks: &[ReturnedBlock<'_>]) -> Result<(), StoreError> {
        let span = info_span!("db.give_back", blocks = blocks.len());
        self.call(GiveBack::new(blocks, &self.sealer, self.clock.now())?).instrument(span).await
    }

    /// How many keys of a pair can be leased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ready_count(&self, pair: ReadyPair<'_>) -> Result<u64, StoreError> {
        let pair = PairText::of(pair)?;
        let read = self.reader.read(async |link| pair.count(link, self.clock.now()).await);
        bounded(read).instrument(info_span!("db.ready_count")).await
    }

    /// Whether other daemons may use the same database.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    async fn insert(&self, batches: &[NewBatch<'_>], ready: Option<&Ready>) -> Result<Inserted, StoreError> {
        let span = info_span!("db.insert", batches = batches.len());
        let insert = Insert::new(batches, ready, &self.sealer, self.clock.now())?;
        self.call(insert).instrument(span).await
    }

    /// Returns the requested keys in their order, all or none, after the commit that uses up their
    /// retrievals.
    ///
    /// # Errors
    /// [`RetrieveError`]; nothing was used up. After [`StoreError::Uncertain`] the retrievals may be.
    pub async fn retrieve(&self, asked: &Retrieval<'_>) -> Result<Vec<Key>, RetrieveError> {
        let span = info_span!("db.retrieve", sae.id = %asked.caller, keys = asked.key_ids.len());
        self.retrieve_in_time(Retrieve::new(asked)?, asked.patience).instrument(span).await
    }

    /// Voids keys of a batch for its source: all of them if `key_ids` is empty. Ignores IDs of other batches.
    /// If the batch is not here, it will be refused until `expires_at`.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was voided. After [`StoreError::Uncertain`], repeat the call to find out.
    pub async fn void(
        &self,
        source: &KmeId,
        batch_id: BatchId,
        key_ids: &[KeyId],
        expires_at: Timestamp,
    ) -> Result<VoidOutcome, StoreError> {
        let span = info_span!("db.void", batch.id = %batch_id, keys = key_ids.len());
        self.call(Void::new(source, batch_id, key_ids, expires_at)?).instrument(span).await
    }

    /// As [`Self::void`], but leaves no tombstone: if the batch is not here, nothing is done.
    ///
    /// # Errors
    /// As for [`Self::void`].
    pub async fn void_stored(
        &self,
        source: &KmeId,
        batch_id: BatchId,
        key_ids: &[KeyId],
    ) -> Result<VoidOutcome, StoreError> {
        let span = info_span!("db.void_stored", batch.id = %batch_id, keys = key_ids.len());
        let void = Void::new(source, batch_id, key_ids, Timestamp::from_ms(0))?.without_tombstone();
        self.call(void).instrument(span).await
    }

    /// Voids a batch of ready keys, unless some of them were leased. For a batch of this site whose
    /// [`Self::insert_ready`] failed or was not answered: the batch may be committed and leased nevertheless.
    /// Does nothing if `created_at` is so long ago that the store may have forgotten a batch that was leased.
    ///
    /// # Errors
    /// As for [`Self::void`].
    pub async fn void_unless_leased(
        &self,
        source: &KmeId,
        batch_id: BatchId,
        created_at: Timestamp,
        expires_at: Timestamp,
    ) -> Result<ReadyVoid, StoreError> {
        let span = info_span!("db.void_unless_leased", batch.id = %batch_id);
        let void = VoidUnlessLeased { void: Void::new(source, batch_id, &[], expires_at)?, created_at };
        self.call(void).instrument(span).await
    }

    /// Erases rows that are due, at most `limit` of each kind. If [`Swept::any`], more may be left.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was erased.
    pub async fn sweep(&self, limit: u32) -> Result<Swept, StoreError> {
        self.call(Sweep { limit }).instrument(info_span!("db.sweep")).await
    }

    /// How much is stored for whom. [`Self::count_stored`] keeps it right.
    pub fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Counts what is stored, in small pieces and with pauses, so that it takes little of the database's
    /// time. Returns how long the pieces took.
    ///
    /// # Errors
    /// [`StoreError`]; the last count stays.
    pub async fn count_stored(&self) -> Result<Duration, StoreError> {
        let (mut count, mut after, mut busy) = (self.usage.begin(), None, Duration::ZERO);
        loop {
            let started = Instant::now();
            let read = self.reader.read(async |link| {
                let last = count_batches(link, &mut count, after).await?;
                if last.is_none() {
                    count_tombstones(link, &mut count).await?;
                }
                Ok(last)
            });
            after = bounded(read).instrument(info_span!("db.count_stored")).await?;
            let took = started.elapsed();
            busy += took;
            if after.is_none() {
                self.usage.end(count);
                return Ok(busy);
            }
            tokio::time::sleep(took * COUNT_PAUSE).await;
        }
    }

    /// Checks that the store is open and can be read, for readiness.
    ///
    /// # Errors
    /// [`StoreError`] says why not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        if self.queue.is_closed() {
            return Err(StoreError::Closed);
        }
        let read = self.reader.read(async |link| {
            sqlx::query(PING).fetch_optional(&mut **link).await?;
            Ok(())
        });
        bounded(read).instrument(info_span!("db.ping")).await
    }

    /// Finishes the waiting jobs and closes the database. Later calls fail with [`StoreError::Closed`].
    pub async fn close(&self) {
        let stop = async {
            self.reader.close().await;
            self.stopping.cancel();
            self.writers.close();
            self.writers.wait().await;
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, stop).await.is_err() {
            warn!("the store did not close in time; what is committed is safe");
        }
    }

    /// Says "busy" only if the retrieval will not take place.
    async fn retrieve_in_time(&self, asked: Retrieve, patience: Duration) -> Result<Vec<Key>, RetrieveError> {
        let started = Instant::now();
        let race = Arc::new(CommitRace::default());
        let (job, answer) = Job::retrieve(asked, Arc::clone(&race));
        let caller = GiveUpOnDrop(race);
        let mut exchange = pin!(self.exchange(job, answer));
        let result = match tokio::time::timeout(patience, &mut exchange).await {
            Ok(result) => result,
            Err(_) if caller.0.give_up() => Err(StoreError::Busy(None).into()),
            Err(_) => exchange.await,
        };
        self.meter.note_call("retrieve", started.elapsed());
        result
    }

    async fn call<V: Verb>(&self, verb: V) -> Result<V::Output, StoreError> {
        let started = Instant::now();
        let (job, answer) = Job::change(verb);
        let result = bounded(self.exchange(job, answer)).await;
        self.meter.note_call(V::NAME, started.elapsed());
        result
    }

    async fn exchange<T, E: From<StoreError>>(&self, job: Job, answer: Answer<T, E>) -> Result<T, E> {
        self.queue.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }
}

/// Waits for `work`, at most for [`CALL_TIMEOUT`]. Dropping `work` tells the writer that nobody waits for it.
async fn bounded<T, E: From<StoreError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_| Err(StoreError::Busy(None).into()))
}

/// A connection to a database that is up to date, and what seals in it.
async fn prepare(
    address: &Address,
    settings: StoreSettings,
    random: Arc<dyn Random>,
    now: Timestamp,
) -> Result<(Link, Sealer), StoreError> {
    address.find(settings.migrate)?;
    let mut link = address.connect().await?;
    // Another daemon may be migrating: waits for it as long as it takes.
    link.set_limits(BE_PATIENT).await?;
    prepare_schema(&mut link, settings.migrate).await?;
    let sealer = Sealer::new(settings.keks, settings.kme, random, now)?;
    check_data_keys(&mut link, &sealer).await?;
    carry_over(&mut link, &sealer, settings.migrate, now).await?;
    link.set_limits(BE_HASTY).await?;
    Ok((link, sealer))
}
