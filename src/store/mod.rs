//! Keys at rest: all SQL, the sealing of material, who may retrieve a key and how often.
//!
//! Owns the database and its schema (`docs/data-model.md` explains the tables). Knows nothing of HTTP,
//! of peers, or of where batches come from; never writes key material that is not sealed, and never
//! returns a key before the commit that uses up its retrieval.

mod commit;
mod connect;
mod copy;
mod dialect;
mod error;
mod insert;
mod jobs;
mod kek;
mod known;
mod locks;
mod meter;
mod migrate;
mod postgres;
mod probe;
mod readers;
mod ready;
mod retrieve;
mod schema;
mod seal;
mod sql;
mod sqlite;
mod sweep;
mod turn;
mod types;
mod void;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kme::{BatchId, Clock, Key, KeyId, KmeId, Random, SourceGrade, Timestamp};
use sqlx::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{Instrument, info_span, warn};

use self::commit::Mark;
use self::connect::Address;
pub use self::copy::{Copied, CopyParts};
use self::dialect::{Dialect, Link};
pub use self::error::{RetrieveError, StoreError};
use self::insert::InsertJob;
use self::jobs::{Job, Queue};
pub use self::kek::{KekError, KeyEncryptionKeys};
use self::known::KnownBatches;
use self::meter::Meter;
pub use self::probe::{SealProbe, SealedBatch};
use self::readers::Readers;
use self::ready::{LeaseJob, PairText, ReadyRow, ReturnJob};
use self::retrieve::RetrieveJob;
pub use self::seal::SealError;
use self::seal::Sealer;
use self::turn::Turn;
pub use self::types::{
    ContentDigest, Counts, Entitlement, Inserted, LeasedBlock, NewBatch, ReadyPair, Retrieval, RetrievalMode,
    ReturnedBlock, Role, Swept, VoidOutcome, Withdrawn,
};
use self::void::VoidJob;
use self::writer::{POSTGRES_WRITERS, Shortcut, Writer};
use crate::metrics::Registry;

/// Most keys of one batch.
pub const MAX_KEYS_PER_BATCH: usize = 65_536;
/// Most keys of one retrieval.
pub const MAX_KEYS_PER_RETRIEVAL: usize = 4_096;
/// The longest that any call waits for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that closing waits for the writer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// Data keys looked at when the store opens: one for each start since the oldest live batch.
const DATA_KEYS_CHECKED: i64 = 10_000;

/// Where the store is and how it is sealed.
#[derive(Clone)]
pub struct StoreSettings {
    /// `sqlite://FILE`, relative to the working directory or absolute, or `postgres://...` (docs/configuration.md), which
    /// may hold a password.
    pub url: String,
    /// The keys that wrap data keys; the first one wraps new ones.
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
    readers: Readers,
    is_shared: bool,
    sealer: Arc<Sealer>,
    clock: Arc<dyn Clock>,
    meter: Arc<Meter>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, inside a tokio runtime: its writer is a task of it.
    ///
    /// # Errors
    /// [`StoreError::Settings`] for a bad URL or path, [`StoreError::Schema`] for a schema that is newer than
    /// this program (or older, without `migrate`), [`StoreError::Seal`] when the newest data key was
    /// wrapped by a KEK that is not given, or any failure of the database.
    pub async fn open(
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, StoreError> {
        let span = info_span!("db.open");
        async move {
            let address = Arc::new(Address::parse(&settings.url)?);
            let mut link = connect_and_prepare(&address, settings.migrate).await?;
            let sealer = Arc::new(Sealer::new(settings.keks, Arc::clone(&random), clock.now())?);
            check_data_keys(&mut link, &sealer).await?;
            let (queue, jobs) = Queue::new();
            let mut link = Some(link);
            let meter = Arc::new(Meter::default());
            let writers = match address.dialect() {
                Dialect::Sqlite => 1,
                Dialect::Postgres => POSTGRES_WRITERS,
            };
            for _ in 0..writers {
                let writer = Writer {
                    address: Arc::clone(&address),
                    link: link.take(),
                    mark: Mark::draw(&*random).map_err(SealError::from)?,
                    sealer: Arc::clone(&sealer),
                    clock: Arc::clone(&clock),
                    random: Arc::clone(&random),
                    meter: Arc::clone(&meter),
                    known: KnownBatches::default(),
                    shortcut: Shortcut::default(),
                    is_swept: false,
                };
                tokio::spawn(writer.run(Arc::clone(&jobs)));
            }
            let is_shared = address.dialect() == Dialect::Postgres;
            Ok(Self { queue, readers: Readers::new(address), is_shared, sealer, clock, meter })
        }
        .instrument(span)
        .await
    }

    /// Shows what the store does in `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.meter.register(registry, self.queue.downgrade());
    }

    /// Creates the database at `url` if there is none and brings its schema up to date.
    ///
    /// # Errors
    /// As for [`Self::open`], without the KEK.
    pub async fn migrate_only(url: &str) -> Result<(), StoreError> {
        let link = connect_and_prepare(&Address::parse(url)?, true).await?;
        Ok(link.into_inner().close().await?)
    }

    /// Copies the store at the URL `from` to the one at `to`, which must be empty and is made when there is none. No
    /// daemon may use either of them meanwhile, or `from` ever after: its keys would be handed out twice.
    ///
    /// # Errors
    /// [`StoreError`]; then the target has nothing. [`StoreError::Uncertain`]: it has everything or nothing.
    pub async fn copy(from: &str, to: &str, parts: CopyParts) -> Result<Copied, StoreError> {
        copy::copy(from, to, parts).await
    }

    /// Makes room for a site of a demo in the Postgres database at `url`: an empty schema of its own, in place of
    /// the one that an earlier demo left. Returns the URL of the site's store.
    ///
    /// # Errors
    /// [`StoreError::Settings`] for any other URL, or a failure of the database.
    pub async fn make_demo_schema(url: &str, site: &str) -> Result<String, StoreError> {
        schema::of_a_demo(url, site).await
    }

    /// Whether `url` names a store that may be used; connects to nothing. Of SQLite nothing is said: its file may
    /// be made later.
    ///
    /// # Errors
    /// [`StoreError::Settings`] with the reason, without repeating the URL.
    pub fn check_url(url: &str) -> Result<(), StoreError> {
        if url.starts_with("sqlite:") { Ok(()) } else { Address::parse(url).map(|_| ()) }
    }

    /// Stores a batch in one transaction. Repeating the same content changes nothing.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was stored, or its caller may repeat the call to find out.
    pub async fn insert_batch(&self, batch: &NewBatch<'_>) -> Result<Inserted, StoreError> {
        if batch.entitled.is_empty() {
            return Err(StoreError::Misuse("a batch that nobody here may retrieve"));
        }
        self.insert(batch, None).await
    }

    /// Stores a batch for the one recipient that it has, and lists its keys as ready to be leased until
    /// `usable_until`.
    ///
    /// # Errors
    /// As for [`Self::insert_batch`].
    pub async fn insert_ready(
        &self,
        batch: &NewBatch<'_>,
        grade: &SourceGrade,
        usable_until: Timestamp,
    ) -> Result<Inserted, StoreError> {
        let [recipient] = batch.recipients else {
            return Err(StoreError::Misuse("ready keys are for one recipient"));
        };
        let pair = ReadyPair { master: batch.master, recipient };
        self.insert(batch, Some(ReadyRow::new(pair, grade, usable_until)?)).await
    }

    /// Takes up to `blocks` blocks of ready keys of a pair out of the store, those that end first in front. The
    /// commit comes before the answer: no other call, process or restart gets them again.
    ///
    /// # Errors
    /// [`StoreError`]; the keys are ready still, except when the commit itself failed half-way through.
    pub async fn lease(&self, pair: ReadyPair<'_>, blocks: u32) -> Result<Vec<LeasedBlock>, StoreError> {
        let span = info_span!("db.lease", sae.id = %pair.master, blocks);
        let job = LeaseJob { pair: PairText::of(pair)?, blocks };
        self.call(|reply| Job::Lease(job, reply)).instrument(span).await
    }

    /// Gives leased keys back that were not handed out; all blocks in one commit. For blocks that are stored
    /// ([`LeasedBlock::is_stored`]); others go through [`Self::insert_ready`], as a batch of their own.
    ///
    /// # Errors
    /// [`StoreError`]; then they stay leased.
    pub async fn give_back(&self, blocks: &[ReturnedBlock<'_>]) -> Result<(), StoreError> {
        let job = |block: &ReturnedBlock<'_>| {
            let row = ReadyRow::new(block.pair, &block.provenance.grade, block.usable_until)?;
            Ok(ReturnJob { batch_id: block.batch_id, key_ids: pack(block.key_ids), row })
        };
        let jobs = blocks.iter().map(job).collect::<Result<Vec<_>, StoreError>>()?;
        let span = info_span!("db.give_back", blocks = jobs.len());
        self.call(|reply| Job::Return(jobs, reply)).instrument(span).await
    }

    /// How many keys of a pair are ready to be leased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ready_count(&self, pair: ReadyPair<'_>) -> Result<u64, StoreError> {
        let pair = PairText::of(pair)?;
        let read = async {
            let mut reader = self.readers.take().await?;
            let count = pair.count(reader.link()?, self.clock.now()).await?;
            reader.give_back();
            Ok(count)
        };
        bounded(read).instrument(info_span!("db.ready_count")).await
    }

    /// Whether other daemons may use the same database.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    async fn insert(&self, batch: &NewBatch<'_>, ready: Option<ReadyRow>) -> Result<Inserted, StoreError> {
        check_batch(batch)?;
        let span = info_span!("db.insert_batch", batch.id = %batch.batch_id, keys = batch.keys.len());
        let sealed = self.sealer.seal(batch.batch_id, batch.keys, self.clock.now())?;
        let job = Box::new(InsertJob::new(batch, sealed, ready)?);
        self.call(|reply| Job::Insert(job, reply)).instrument(span).await
    }

    /// Returns the keys in the order asked, all or none, after the commit that uses up the caller's
    /// retrievals of them.
    ///
    /// # Errors
    /// [`RetrieveError`]; nothing was used up, except when the commit itself failed half-way through.
    pub async fn retrieve(&self, asked: &Retrieval<'_>) -> Result<Vec<Key>, RetrieveError> {
        check_retrieval(asked)?;
        let span = info_span!("db.retrieve", sae.id = %asked.caller, keys = asked.key_ids.len());
        let job = Box::new(RetrieveJob::from(asked));
        self.retrieve_in_time(job, asked.patience).instrument(span).await
    }

    /// Voids keys of a batch for its source: all of them when `key_ids` is empty. IDs that are not of this
    /// batch are left out of the outcome. A batch that is not here is remembered until `expires_at` and refused
    /// should it still arrive.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was voided, or the call may be repeated to find out.
    pub async fn void(
        &self,
        source: &KmeId,
        batch_id: BatchId,
        key_ids: &[KeyId],
        expires_at: Timestamp,
    ) -> Result<VoidOutcome, StoreError> {
        if key_ids.len() > MAX_KEYS_PER_BATCH {
            return Err(StoreError::Misuse("too many keys in one void"));
        }
        let span = info_span!("db.void", batch.id = %batch_id, keys = key_ids.len());
        let job = VoidJob { source: source.clone(), batch_id, key_ids: key_ids.to_vec(), expires_at };
        self.call(|reply| Job::Void(job, reply)).instrument(span).await
    }

    /// Voids a batch of ready keys that this site made and whose [`Self::insert_ready`] failed or went unanswered:
    /// it may have been committed all the same, and leased.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was voided, or the call may be repeated to find out.
    pub async fn withdraw(
        &self,
        source: &KmeId,
        batch_id: BatchId,
        expires_at: Timestamp,
    ) -> Result<Withdrawn, StoreError> {
        let span = info_span!("db.withdraw", batch.id = %batch_id);
        let job = VoidJob { source: source.clone(), batch_id, key_ids: Vec::new(), expires_at };
        self.call(|reply| Job::Withdraw(job, reply)).instrument(span).await
    }

    /// Erases at most `limit` rows of each kind that are past their time. When [`Swept::any`], more may be waiting; else
    /// the write-ahead log is moved into the database file.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was erased.
    pub async fn sweep(&self, limit: u32) -> Result<Swept, StoreError> {
        self.call(|reply| Job::Sweep(limit, reply)).instrument(info_span!("db.sweep")).await
    }

    /// Whether the store can be read and takes changes, for readiness.
    ///
    /// # Errors
    /// [`StoreError`] says why not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        if self.queue.is_closed() {
            return Err(StoreError::Closed);
        }
        let read = async {
            let mut reader = self.readers.take().await?;
            let link = reader.link()?;
            sqlx::query(link.text(sql::PING)).fetch_optional(&mut **link).await?;
            reader.give_back();
            Ok(())
        };
        bounded(read).instrument(info_span!("db.ping")).await
    }

    /// Counts what is stored. Reads an index from end to end: for status, not for every request.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let read = async {
            let mut reader = self.readers.take().await?;
            let link = reader.link()?;
            let counts = sqlx::query_as(link.text(sql::COUNTS)).fetch_one(&mut **link).await?;
            reader.give_back();
            Ok::<_, StoreError>(counts)
        };
        let (batches, keys): (i64, i64) = bounded(read).instrument(info_span!("db.counts")).await?;
        Ok(Counts { batches: batches.unsigned_abs(), keys: keys.unsigned_abs() })
    }

    /// Finishes the jobs at hand and closes the database. Later calls fail with [`StoreError::Closed`].
    pub async fn close(&self) {
        let (reply, stopped) = oneshot::channel();
        let stop = async {
            self.readers.close().await;
            if self.queue.send(Job::Stop(reply)).await.is_ok() {
                let _ = stopped.await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, stop).await.is_err() {
            warn!("the store did not close in time; what was committed is safe");
        }
    }

    /// "Busy" is said only of a retrieval that will not take place.
    async fn retrieve_in_time(
        &self,
        job: Box<RetrieveJob>,
        patience: Duration,
    ) -> Result<Vec<Key>, RetrieveError> {
        let started = Instant::now();
        let caller = Caller(Arc::clone(&job.turn));
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let sent = self.queue.send(Job::Retrieve(job, reply)).await;
            sent.map_err(|_| StoreError::Closed)?;
            answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
        };
        let mut exchange = pin!(exchange);
        let result = match tokio::time::timeout(patience, &mut exchange).await {
            Ok(result) => result,
            Err(_) if caller.0.give_up() => Err(StoreError::Busy(None).into()),
            Err(_) => exchange.await,
        };
        self.meter.note_call("retrieve", started.elapsed());
        result
    }

    async fn call<T, E: From<StoreError>>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Job,
    ) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let job = job(reply);
        let (name, started) = (job.name(), Instant::now());
        let result = bounded(async {
            self.queue.send(job).await.map_err(|_| StoreError::Closed)?;
            answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
        })
        .await;
        self.meter.note_call(name, started.elapsed());
        result
    }

    #[cfg(test)]
    async fn on_writer(&self, statement: &'static str) -> Result<(), StoreError> {
        self.call(|reply| Job::Raw(statement, reply)).await
    }
}

/// Gives up a retrieval when its caller goes away.
struct Caller(Arc<Turn>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Gives up on `work` after [`CALL_TIMEOUT`]; dropping it tells the writer that nobody waits.
async fn bounded<T, E: From<StoreError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_| Err(StoreError::Busy(None).into()))
}

async fn connect_and_prepare(address: &Address, migrate: bool) -> Result<Link, StoreError> {
    address.find(migrate)?;
    let mut link = address.connect().await?;
    migrate::prepare_schema(&mut link, migrate).await?;
    Ok(link)
}

/// Unwraps the stored data keys. The newest has to open: a store whose KEK was lost or mixed up is refused
/// before it takes new keys. Keys of older ones may be all expired, so those only warn.
async fn check_data_keys(link: &mut Link, sealer: &Sealer) -> Result<(), StoreError> {
    let stored: Vec<(Vec<u8>, String, Vec<u8>)> =
        sqlx::query_as(link.text(sql::DATA_KEYS)).bind(DATA_KEYS_CHECKED).fetch_all(&mut **link).await?;
    for (index, (id, kek_id, wrapped)) in stored.iter().enumerate() {
        let damaged = || StoreError::corrupt("data_keys", hex::encode(id));
        let id = id.as_slice().try_into().map_err(|_| damaged())?;
        let learnt = sealer.learn(id, kek_id, wrapped);
        match learnt {
            Ok(true) => {}
            Ok(false) if index == 0 => return Err(damaged()),
            Err(error) if index == 0 => return Err(error.into()),
            _ => {
                warn!(kek.id = %kek_id, "an older data key cannot be unwrapped; its keys stay closed");
            }
        }
    }
    Ok(())
}

fn check_batch(batch: &NewBatch<'_>) -> Result<(), StoreError> {
    let Some(first) = batch.keys.first() else {
        return Err(StoreError::Misuse("a batch without keys"));
    };
    let key_bytes = first.material.len_bytes();
    if batch.keys.len() > MAX_KEYS_PER_BATCH {
        return Err(StoreError::Misuse("too many keys in one batch"));
    }
    if key_bytes == 0 || batch.keys.iter().any(|key| key.material.len_bytes() != key_bytes) {
        return Err(StoreError::Misuse("keys of one batch must have one length, of at least a byte"));
    }
    if !distinct(batch.keys.iter().map(|key| key.id)) {
        return Err(StoreError::Misuse("a key ID twice in one batch"));
    }
    Ok(())
}

fn check_retrieval(asked: &Retrieval<'_>) -> Result<(), StoreError> {
    if asked.key_ids.is_empty() || asked.key_ids.len() > MAX_KEYS_PER_RETRIEVAL {
        return Err(StoreError::Misuse("too few or too many keys in one retrieval"));
    }
    if !distinct(asked.key_ids.iter().copied()) {
        return Err(StoreError::Misuse("a key ID twice in one retrieval"));
    }
    Ok(())
}

fn distinct(mut key_ids: impl Iterator<Item = KeyId>) -> bool {
    let mut seen = HashSet::new();
    key_ids.all(|id| seen.insert(id))
}

/// IDs one after the other, as [`sql`] takes them.
fn pack(key_ids: &[KeyId]) -> Vec<u8> {
    key_ids.iter().flat_map(KeyId::as_bytes).copied().collect()
}

/// The reverse of [`pack`].
fn unpack(packed: &[u8]) -> Vec<KeyId> {
    packed.as_chunks().0.iter().map(|id| KeyId::from_bytes(*id)).collect()
}
