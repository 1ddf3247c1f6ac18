//! Carries out one order, all or nothing: splits it into batches, makes them, pushes them to every site,
//! commits here.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use blast::{self, BatchSeeds, EngineError};
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kme::life;
use kme::{
    BatchId, Demands, FreshKey, Key, KeyId, KmeId, Party, Provenance, Recipient, SaeId, Seed, SourceGrade,
    Timestamp,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::announce::AnnounceFailure;
use super::meter::Cause;
use super::reserve::{Maker, Purpose};
use super::retract::{Retractor, Traces};
use super::turns::{Turns, turns_of};
use super::{SupplyError, SupplyParts, SupplySettings, batch, compare};
use crate::peer::wire::BatchMetadata;
use crate::peer::{NotPushed, PeerClient, Pushed, content_digest};
use crate::pool::{PoolSet, PoolSetError, SetTrouble, SourceSetError};
use crate::store::{
    ContentDigest, Entitlement, Inserted, LeasedBlock, MAX_BATCHES_PER_INSERT, NewBatch, Reserved, Role,
};

/// Deliveries of one order in work at once.
const DELIVERIES_AT_ONCE: usize = 2;
/// Batches with more recipients are pushed one by one.
const RECIPIENTS_OF_LISTS: usize = 8;

/// An order for fresh keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyOrder<'a> {
    /// The SAE that will receive them now.
    pub master: &'a SaeId,
    /// Everyone else who may retrieve them; at least one, distinct.
    pub recipients: &'a [Recipient],
    /// How many keys, at least one.
    pub number: usize,
    /// Length of each key in bytes, at least one.
    pub key_bytes: usize,
    /// What the caller demands of the keys.
    pub demands: &'a Demands,
}

/// Makes batches for orders and for the reserve.
pub(super) struct KeyMaker {
    parts: Arc<SupplyParts>,
    settings: SupplySettings,
    retractor: Retractor,
    turns: Turns,
}

impl KeyMaker {
    pub(super) fn new(parts: Arc<SupplyParts>, settings: SupplySettings) -> Self {
        let (retractor, turns) = (Retractor::new(Arc::clone(&parts)), Turns::default());
        Self { parts, settings, retractor, turns }
    }

    /// Makes the keys of `order`, all or none.
    pub(super) async fn fill(&self, order: KeyOrder<'_>) -> Result<Vec<FreshKey>, SupplyError> {
        let deliveries = self.split(order)?;
        if !order.demands.met_by_life(self.settings.key_ttl) {
            return Err(SupplyError::DemandsNotMet);
        }
        let work = Work::new(self, order);
        let room = work.reserve(Purpose::Waiting)?;
        let made = self.in_time(work.make_all(&deliveries)).await;
        self.parts.meter.made(Cause::Order, deliveries.iter().map(Vec::len).sum(), order.number, &made);
        let made = work.settle(made)?;
        room.into_iter().for_each(Reserved::stored);
        Ok(made)
    }

    /// The deliveries of an order, each as the numbers of keys of its batches.
    fn split(&self, order: KeyOrder<'_>) -> Result<Vec<Vec<usize>>, SupplyError> {
        batch::deliveries(order.number, order.key_bytes, self.parts.sets.largest_bits()).ok_or_else(|| {
            tracing::error!(key_bytes = order.key_bytes, "no batch can hold keys of this size");
            SupplyError::Internal
        })
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, SupplyError>>) -> Result<T, SupplyError> {
        tokio::time::timeout(self.settings.order_timeout, work).await.unwrap_or(Err(SupplyError::Slow))
    }
}

impl Maker for KeyMaker {
    fn make<'a>(
        self: Arc<Self>,
        master: &'a SaeId,
        recipient: &'a Recipient,
        number: usize,
        purpose: Purpose,
    ) -> BoxFuture<'a, Result<Vec<LeasedBlock>, SupplyError>> {
        Box::pin(async move {
            let order = KeyOrder {
                master,
                recipients: std::slice::from_ref(recipient),
                number,
                key_bytes: self.settings.default_key_bytes,
                demands: &Demands::default(),
            };
            let deliveries = self.split(order)?;
            let work = Work::new(&self, order);
            let room = work.reserve(purpose)?;
            let made = self.in_time(work.make_blocks(&deliveries, purpose)).await;
            let cause = match purpose {
                Purpose::Ready | Purpose::Ahead => Cause::Refill,
                Purpose::Waiting => Cause::Waiting,
            };
            self.parts.meter.made(cause, deliveries.iter().map(Vec::len).sum(), number, &made);
            let made = work.settle(made)?;
            room.into_iter().for_each(Reserved::stored);
            Ok(made)
        })
    }

    fn is_reachable(&self, recipient: &Recipient) -> bool {
        recipient.kme == self.parts.local || self.parts.peers.is_answering(&recipient.kme)
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }
}

/// A batch that every other site has.
struct Made {
    batch_id: BatchId,
    content: ContentDigest,
    keys: Vec<Key>,
    provenance: Arc<Provenance>,
}

/// An order in work, and every place where it may have left keys.
struct Work<'a> {
    maker: &'a KeyMaker,
    order: KeyOrder<'a>,
    sites: BTreeSet<KmeId>,
    created_at: Timestamp,
    expires_at: Timestamp,
    traces: Mutex<Traces>,
    turns: Arc<Semaphore>,
}

impl<'a> Work<'a> {
    fn new(maker: &'a KeyMaker, order: KeyOrder<'a>) -> Self {
        let created_at = maker.parts.clock.now();
        let expires_at = created_at.plus(maker.settings.key_ttl);
        // The remote sites among the recipients'.
        let sites = order.recipients.iter().map(|recipient| &recipient.kme);
        let sites = sites.filter(|kme| **kme != maker.parts.local).cloned().collect();
        let turns = maker.turns.of(order.master);
        Self { maker, order, sites, created_at, expires_at, traces: Mutex::default(), turns }
    }

    /// Room for what the order will leave in this site's store; `None` if that is nothing.
    fn reserve(&self, purpose: Purpose) -> Result<Option<Reserved>, SupplyError> {
        let KeyOrder { master, number, key_bytes, .. } = self.order;
        if purpose != Purpose::Ready && self.entitled_here().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.maker.parts.quotas.own(master, number, key_bytes)?))
    }

    /// Ends the work. After a failure, voids everywhere what it left behind.
    fn settle<T>(self, made: Result<T, SupplyError>) -> Result<T, SupplyError> {
        if let Err(error) = &made {
            tracing::debug!(
                error = error as &dyn std::error::Error,
                keys = self.order.number,
                sites = self.sites.len(),
                "an order for keys failed"
            );
            self.maker.retractor.start(self.traces.into_inner(), self.created_at, self.expires_at);
        }
        made
    }

    /// Makes blocks for the reserve. Those for [`Purpose::Ready`] are in the store then; others are returned.
    async fn make_blocks(
        &self,
        deliveries: &[Vec<usize>],
        purpose: Purpose,
    ) -> Result<Vec<LeasedBlock>, SupplyError> {
        let made = self.make_each(deliveries).await?;
        let entitled = self.entitled_here();
        // Keys are handed out in the first half of their life, so that everyone has the second half to
        // retrieve them.
        let usable_until = life::usable_until(self.created_at, self.expires_at);
        if purpose == Purpose::Ready {
            self.store(&made, &entitled, As::Ready(usable_until)).await?;
            return Ok(Vec::new());
        }
        let leased_at = self.maker.parts.clock.now();
        if !entitled.is_empty() {
            let hand_out_until = life::hand_out_until(self.created_at, self.expires_at, leased_at);
            self.store(&made, &entitled, As::HandedOut(hand_out_until)).await?;
        }
        let block = |made: Made| LeasedBlock {
            batch_id: made.batch_id,
            entitled: entitled.clone(),
            leased_at,
            usable_until,
            created_at: self.created_at,
            provenance: made.provenance,
            keys: made.keys,
        };
        Ok(made.into_iter().map(block).collect())
    }

    async fn make_all(&self, deliveries: &[Vec<usize>]) -> Result<Vec<FreshKey>, SupplyError> {
        let made = self.make_each(deliveries).await?;
        // Every other site has stored every batch. Only now does this site store what may be retrieved here.
        let entitled = self.entitled_here();
        if !entitled.is_empty() {
            let handed_out = As::HandedOut(self.created_at.plus(self.maker.settings.order_timeout));
            self.store(&made, &entitled, handed_out).await?;
        }
        let fresh = |batch: Made| {
            let provenance = batch.provenance;
            batch.keys.into_iter().map(move |key| FreshKey { key, provenance: Arc::clone(&provenance) })
        };
        Ok(made.into_iter().flat_map(fresh).collect())
    }

    async fn make_each(&self, deliveries: &[Vec<usize>]) -> Result<Vec<Made>, SupplyError> {
        // (A closure over these references would not be Send.)
        let mut running = Vec::with_capacity(deliveries.len());
        for counts in deliveries {
            running.push(self.make(counts));
        }
        let made: Vec<Vec<Made>> = stream::iter(running).buffered(DELIVERIES_AT_ONCE).try_collect().await?;
        Ok(made.into_iter().flatten().collect())
    }

    /// Who may retrieve the keys at this site.
    fn entitled_here(&self) -> Vec<Entitlement> {
        let master = Entitlement { party: Party::Sae(self.order.master.clone()), role: Role::Master };
        let local = self.order.recipients.iter().filter(|to| to.kme == self.maker.parts.local);
        let slaves = local.map(|to| Entitlement { party: to.party.clone(), role: Role::Slave });
        self.maker.settings.master_refetch.then_some(master).into_iter().chain(slaves).collect()
    }

    /// Makes a delivery: batches of one pool set, which every other site has then. If a site cannot use the set
    /// (it restarted, or its pools differ), tries once more with a new one.
    async fn make(&self, counts: &[usize]) -> Result<Vec<Made>, SupplyError> {
        let bits = |count: &usize| blast::output_bits(self.order.key_bytes, *count).map_err(internal);
        let bits = counts.iter().map(bits).collect::<Result<Vec<_>, _>>()?;
        let turns = bits.iter().map(|bits| turns_of(*bits)).sum();
        let _turns = self.turns.acquire_many(turns).await.map_err(internal)?;
        let bits = bits.iter().sum();
        let drawn = self.draw(counts)?;
        let ids: BTreeSet<BatchId> = drawn.iter().map(|drawn| drawn.batch_id).collect();
        match self.attempt(drawn, bits).await {
            Err(Failure::SetGone { error, .. }) => {
                tracing::info!(error = &error as &dyn std::error::Error, "trying again with a new pool set");
                self.retract(&ids);
                self.attempt(self.draw(counts)?, bits).await.map_err(Failure::into_error)
            }
            result => result.map_err(Failure::into_error),
        }
    }

    /// Voids batches that some sites may have stored, although the order goes on without them.
    fn retract(&self, ids: &BTreeSet<BatchId>) {
        let mut traces = self.traces.lock();
        let (given_up, kept) =
            std::mem::take(&mut traces.remote).into_iter().partition(|(_, batch)| ids.contains(batch));
        traces.remote = kept;
        drop(traces);
        let given_up = Traces { remote: given_up, ..Traces::default() };
        self.maker.retractor.start(given_up, self.created_at, self.expires_at);
    }

    /// `bits` is what all batches together take from a pool set.
    async fn attempt(&self, drawn: Vec<Drawn>, bits: u64) -> Result<Vec<Made>, Failure> {
        let (order, parts) = (self.order, &self.maker.parts);
        let set = parts.sets.acquire(&self.sites, bits).await.map_err(no_set)?;
        let (pools, entropy_sources) = (set.pool_count(), set.entropy_sources());
        if !order.demands.met_by_pools(pools, &entropy_sources) {
            return Err(SupplyError::DemandsNotMet.into());
        }
        let started = Instant::now();
        let generated = generate(Arc::clone(&set), order.key_bytes, drawn).await?;
        parts.meter.generate(started.elapsed());
        let (mut keys, mut batches) = (Vec::new(), Vec::new());
        for Generated { drawn, batch } in generated {
            keys.push(batch.keys);
            batches.push(BatchMetadata {
                batch_id: drawn.batch_id,
                suite: blast::SUITE.to_owned(),
                pool_set: set.announcement(),
                seed: drawn.seeds.seed,
                mask_seed: drawn.seeds.mask_seed,
                words_per_pool: batch.words_per_pool,
                key_bytes: order.key_bytes,
                key_ids: drawn.key_ids,
                master: order.master.clone(),
                recipients: order.recipients.to_vec(),
                created_at: self.created_at,
                expires_at: self.expires_at,
                confirm: batch.confirm,
            });
        }
        let pushed = match try_join_all(self.sites.iter().map(|kme| self.push(kme, &batches))).await {
            Ok(pushed) => pushed,
            Err(failure) => {
                self.heed(&failure, &set).await;
                return Err(failure);
            }
        };
        set.note_proof();
        let hybrid_tls = pushed.iter().all(|is_hybrid| *is_hybrid);
        let grade = SourceGrade { entropy_sources, pools, hybrid_tls };
        let provenance = Provenance { grade, expires_at: self.expires_at };
        if !order.demands.met_by(&provenance, self.created_at) {
            return Err(SupplyError::DemandsNotMet.into());
        }
        let provenance = Arc::new(provenance);
        let made = |(batch, keys): (&BatchMetadata, _)| Made {
            batch_id: batch.batch_id,
            content: ContentDigest(content_digest(batch)),
            keys,
            provenance: Arc::clone(&provenance),
        };
        Ok(batches.iter().zip(keys).map(made).collect())
    }

    /// What is random in batches of so many keys.
    fn draw(&self, counts: &[usize]) -> Result<Vec<Drawn>, SupplyError> {
        let random = &*self.maker.parts.random;
        let draw = |count: &usize| {
            Ok(Drawn {
                batch_id: BatchId::draw(random).map_err(internal)?,
                key_ids: KeyId::draw_batch(*count, random).map_err(internal)?,
                seeds: BatchSeeds {
                    seed: Seed::draw(random).map_err(internal)?,
                    mask_seed: Seed::draw(random).map_err(internal)?,
                },
            })
        };
        counts.iter().map(draw).collect()
    }

    /// Draws the consequences of a failure that is about the pool set, so that the next set may do.
    ///
    /// Batches of a discarded set that were confirmed before stay good. Their confirmation values show that
    /// both sites had the same sample of every pool, and what the dishonest server knows of its own pool
    /// counts for nothing while another pool is honest.
    async fn heed(&self, failure: &Failure, set: &Arc<PoolSet>) {
        let parts = &self.maker.parts;
        let Failure::SetGone { kme, trouble, .. } = failure else { return };
        // First, so that no key is made of the set when its digests leave this site.
        parts.sets.discard(&self.sites, set.id());
        match trouble {
            Some(SetTrouble::ConfirmationMismatch) => {
                tracing::error!(
                    peer = %kme, set = %set.id(),
                    "the pools of two sites differ; their set is discarded and its pools are compared"
                );
                compare::find_liar(parts, kme, set).await;
            }
            Some(trouble) => parts.sets.servers().heed(kme, trouble),
            None => {}
        }
    }

    /// Pushes all of `batches` to a site. Returns whether all connections were hybrid.
    async fn push(&self, kme: &KmeId, batches: &[BatchMetadata]) -> Result<bool, Failure> {
        let peer = self.maker.parts.peers.find(kme);
        let peer = peer.ok_or_else(|| SupplyError::PeerUnavailable(kme.clone()))?;
        let mut pushes = Vec::new();
        // Many recipients make a list longer than a request may be.
        let is_short = self.order.recipients.len() <= RECIPIENTS_OF_LISTS;
        for batches in batches.chunks(if is_short { peer.batches_per_push() } else { 1 }) {
            pushes.push(self.push_together(peer, batches));
        }
        Ok(try_join_all(pushes).await?.iter().all(|pushed| pushed.hybrid_tls))
    }

    async fn push_together(&self, peer: &PeerClient, batches: &[BatchMetadata]) -> Result<Pushed, Failure> {
        let kme = peer.kme();
        let traces = || batches.iter().map(|batch| (kme.clone(), batch.batch_id));
        // Noted before the call: even if it fails, the site may have stored the batches.
        self.traces.lock().remote.extend(traces());
        let started = Instant::now();
        let pushed = peer.push(batches).await;
        let result = pushed.as_ref().map_err(|failed| &failed.error);
        self.maker.parts.meter.pushed(kme, batches.len(), result);
        tracing::debug!(
            peer = %kme,
            batches = batches.len(),
            keys = batches.iter().map(|batch| batch.key_ids.len()).sum::<usize>(),
            acknowledged = pushed.is_ok(),
            duration_ms = started.elapsed().as_secs_f64() * 1e3,
            "batches pushed"
        );
        pushed.map_err(|NotPushed { error, may_be_stored }| {
            if !may_be_stored {
                let mut noted = self.traces.lock();
                for trace in traces() {
                    noted.remote.remove(&trace);
                }
            }
            let supply_error = SupplyError::of_peer(&error);
            if error.refuses_set() || error.is_mismatch() {
                let trouble = error.set_trouble().cloned();
                return Failure::SetGone { kme: kme.clone(), trouble, error: supply_error };
            }
            if let Some(trouble) = error.set_trouble() {
                self.maker.parts.sets.servers().heed(kme, trouble);
            }
            Failure::Order(supply_error)
        })
    }

    /// Stores batches here, as many in one commit as the store takes.
    async fn store(&self, made: &[Made], entitled: &[Entitlement], keys: As) -> Result<(), SupplyError> {
        let mut stores = Vec::new();
        for made in made.chunks(MAX_BATCHES_PER_INSERT) {
            stores.push(self.store_together(made, entitled, keys));
        }
        try_join_all(stores).await.map(drop)
    }

    async fn store_together<'m>(
        &'m self,
        made: &'m [Made],
        entitled: &'m [Entitlement],
        keys: As,
    ) -> Result<(), SupplyError> {
        let parts = &self.maker.parts;
        let copy_ends_at = match keys {
            As::Ready(_) => None,
            As::HandedOut(until) => Some(life::copy_ends_at(until, self.maker.settings.master_ttl)),
        };
        let batch = |made: &'m Made| NewBatch {
            batch_id: made.batch_id,
            source: &parts.local,
            master: self.order.master,
            recipients: self.order.recipients,
            entitled,
            content: made.content,
            created_at: self.created_at,
            expires_at: self.expires_at,
            copy_ends_at,
            keys: &made.keys,
        };
        let batches: Vec<NewBatch<'_>> = made.iter().map(batch).collect();
        let ids = made.iter().map(|made| made.batch_id);
        let inserted = if let (As::Ready(until), Some(first)) = (keys, made.first()) {
            self.traces.lock().ready.extend(ids);
            parts.store.insert_ready(&batches, &first.provenance.grade, until).await
        } else {
            self.traces.lock().local.extend(ids);
            parts.store.insert_batches(&batches).await
        };
        match inserted {
            Ok(Inserted::Stored) => Ok(()),
            Ok(other) => {
                tracing::error!(?other, "fresh batches were not stored");
                Err(SupplyError::Internal)
            }
            Err(error) => Err(SupplyError::of_store(&error)),
        }
    }
}

/// What becomes of the keys of a batch that is stored here.
#[derive(Clone, Copy)]
enum As {
    /// They may be leased until then.
    Ready(Timestamp),
    /// They are handed out before then, without a lease.
    HandedOut(Timestamp),
}

/// Why a batch was not made.
enum Failure {
    /// A site cannot use the set; another set may work.
    SetGone {
        /// The site.
        kme: KmeId,
        /// What it said of the set.
        trouble: Option<SetTrouble>,
        /// The error if there is no other set.
        error: SupplyError,
    },
    /// The order has failed.
    Order(SupplyError),
}

impl Failure {
    fn into_error(self) -> SupplyError {
        match self {
            Self::SetGone { error, .. } | Self::Order(error) => error,
        }
    }
}

impl From<SupplyError> for Failure {
    fn from(error: SupplyError) -> Self {
        Self::Order(error)
    }
}

/// What is random in a batch.
struct Drawn {
    batch_id: BatchId,
    key_ids: Vec<KeyId>,
    seeds: BatchSeeds,
}

/// A batch from the engine, with what it was made from.
struct Generated {
    drawn: Drawn,
    batch: blast::Generated,
}

/// Runs the engine on a blocking thread, so that other tasks go on.
async fn generate(
    set: Arc<PoolSet>,
    key_bytes: usize,
    drawn: Vec<Drawn>,
) -> Result<Vec<Generated>, SupplyError> {
    let of_one = move |drawn: Drawn| {
        let batch = blast::generate(&set.sources(), &drawn.seeds, key_bytes, &drawn.key_ids)?;
        Ok(Generated { drawn, batch })
    };
    tokio::task::spawn_blocking(move || drawn.into_iter().map(of_one).collect::<Result<_, _>>())
        .await
        .map_err(internal)?
        .map_err(|error: EngineError| internal(error))
}

fn internal(error: impl std::error::Error + 'static) -> SupplyError {
    tracing::error!(error = &error as &dyn std::error::Error, "keys could not be made");
    SupplyError::Internal
}

/// The caller's error when there is no pool set. Whoever failed to make the set logged the cause.
pub(super) fn no_set(error: SourceSetError) -> SupplyError {
    match &error {
        SourceSetError::NotMade(cause) => match &**cause {
            PoolSetError::TooFewServers { answered, needed, missing } => SupplyError::TooFewPoolServers {
                answered: *answered,
                needed: *needed,
                missing: missing.keys().cloned().collect(),
            },
            _ => SupplyError::Internal,
        },
        SourceSetError::NotAnnounced(error) => match error.cause.downcast_ref::<AnnounceFailure>() {
            Some(failure) => failure.as_supply_error(),
            None => SupplyError::Internal,
        },
        SourceSetError::TooLarge { .. } | SourceSetError::Busy(_) => SupplyError::Busy,
    }
}
