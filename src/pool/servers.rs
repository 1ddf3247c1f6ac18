//! The configured pool servers: makes pool sets on them, fetches announced sets, releases old ones.
//!
//! Servers are chosen at random among those that answer; one that failed is not asked for a while, and one
//! whose pool differed between two sites is not used for sets of these sites. A peer may name a server; its
//! address comes only from the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use blast::{MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS};
use kme::{Clock, KmeId, PoolId, PoolServerId, PoolSetId, Random, Timestamp, causes};
use parking_lot::Mutex;

use super::client::{PoolClient, PoolClientError};
use super::error::{PoolSetError, listed};
use super::readers::{ExtraRead, ReadWatch};
use super::set::{AnnouncedPool, AnnouncedSet, HeldPool, PoolSet, SetTrouble};
use super::standing::{ServerStanding, Standing};

/// After a server was silent for this part of the time for a set, another is asked as well.
const PATIENCE_PART: u32 = 4;

/// Most releases under way or waiting; further pools are left to expire.
const RELEASES_MAX: usize = 256;

/// How sets are made.
#[derive(Clone, Debug)]
pub struct PoolServersSettings {
    /// Pools of a set when enough servers answer; 2 to 8.
    pub pools_per_set: usize,
    /// Fewest pools of a set; 2 to `pools_per_set`.
    pub pools_min: usize,
    /// Longest time for making or fetching a whole set.
    pub set_timeout: Duration,
    /// How often each reader may download one pool before a warning: once for each replica of its site. Once
    /// for a reader that is not listed. The source itself downloads a pool once, however many replicas it
    /// has.
    pub reads_expected: BTreeMap<KmeId, u64>,
}

struct PoolServer {
    client: PoolClient,
    standing: Standing,
}

/// What an attempt at a set gave.
#[derive(Default)]
struct Gathered {
    made: Vec<MadePool>,
    missing: BTreeMap<PoolServerId, String>,
}

/// A pool that was made and downloaded, but is not in a set yet.
struct MadePool {
    held: HeldPool,
    expires_at: Timestamp,
}

/// What one server gave.
type Attempt = (PoolServerId, Result<MadePool, PoolClientError>);

/// What is left to do for a set that is not used any more, without its bytes.
struct Retired {
    set: String,
    pools: Vec<AnnouncedPool>,
    readers: BTreeSet<KmeId>,
    bits_drawn: u64,
    /// Its extra reads were reported already.
    has_alarm: bool,
}

/// What every attempt at one server needs.
#[derive(Clone)]
struct Wanted {
    readers: Vec<KmeId>,
    words: usize,
    ttl: Duration,
    created_at: Timestamp,
    deadline: Instant,
}

/// All configured pool servers.
pub struct PoolServers {
    local: KmeId,
    servers: Vec<Arc<PoolServer>>,
    settings: PoolServersSettings,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    reads: Arc<ReadWatch>,
    /// The peers that refused a set because it had too few pools, and how many they demand.
    demands: Mutex<BTreeMap<KmeId, usize>>,
    releases: Arc<Semaphore>,
}

impl PoolServers {
    /// The servers behind `clients`, which `local` uses.
    pub fn new(
        local: KmeId,
        clients: Vec<PoolClient>,
        settings: PoolServersSettings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Arc<Self> {
        let server = |client| Arc::new(PoolServer { client, standing: Standing::default() });
        let reads = Arc::new(ReadWatch::new(settings.reads_expected.clone()));
        Arc::new(Self {
            local,
            servers: clients.into_iter().map(server).collect(),
            reads,
            demands: Mutex::default(),
            settings,
            clock,
            random,
            releases: Arc::new(Semaphore::new(RELEASES_MAX)),
        })
    }

    /// Pools that a set has when enough servers answer.
    pub fn pools_per_set(&self) -> usize {
        self.settings.pools_per_set.clamp(MIN_POOLS, MAX_POOLS)
    }

    /// Fewest pools of a set.
    pub fn pools_min(&self) -> usize {
        self.settings.pools_min.clamp(MIN_POOLS, self.pools_per_set())
    }

    /// How each configured server stands, in the order of the configuration.
    pub fn standings(&self) -> Vec<(PoolServerId, ServerStanding)> {
        self.servers.iter().map(|server| (server.client.server().clone(), server.standing.look())).collect()
    }

    /// How many servers may be asked now for a set that is shared with `peers`.
    pub fn usable_for(&self, peers: &BTreeSet<KmeId>) -> usize {
        let is_usable = |server: &&Arc<PoolServer>| {
            server.standing.is_trusted_for(peers) && !server.standing.is_paused_for(peers)
        };
        self.servers.iter().filter(is_usable).count()
    }

    /// The peers that demand more pools than a set of this site had, with their numbers.
    pub fn demands(&self) -> BTreeMap<KmeId, usize> {
        self.demands.lock().clone()
    }

    /// Reads of pools that were not expected, since the start, at each server.
    pub fn extra_reads(&self) -> Vec<(PoolServerId, u64)> {
        let of = |server: &Arc<PoolServer>| {
            let name = server.client.server();
            (name.clone(), self.reads.count(name))
        };
        self.servers.iter().map(of).collect()
    }

    /// The last read that was not expected, for some minutes.
    pub fn recent_extra_read(&self) -> Option<String> {
        self.reads.recent()
    }

    /// Does not use `server` for sets that are shared with `peer`, for 10 minutes at first: its pool differed
    /// between the two sites. Returns how long; nothing for a server that is not configured.
    pub fn quarantine(&self, server: &PoolServerId, peer: &KmeId) -> Option<Duration> {
        let found = self.find(server)?;
        let pause = found.standing.quarantine(peer);
        tracing::error!(
            %server, %peer, minutes = pause.as_secs() / 60,
            "a pool server gave two sites different pools, and is under quarantine for sets of these sites"
        );
        Some(pause)
    }

    /// Notes why `peer` could not use a set. It counts for sets that are shared with that peer.
    pub fn heed(&self, peer: &KmeId, trouble: &SetTrouble) {
        match trouble {
            SetTrouble::PoolServers { pool_servers } => {
                for name in pool_servers.iter().take(MAX_POOLS) {
                    let Some(server) = self.find(name) else { continue };
                    server.standing.note_failure_at(peer, &format!("KME {peer} cannot use it"));
                    tracing::info!(server = %name, %peer, "a peer cannot use a pool server; trying others");
                }
            }
            SetTrouble::TooFewPools { pools_min } => {
                self.demands.lock().insert(peer.clone(), (*pools_min).min(MAX_POOLS));
            }
            SetTrouble::ConfirmationMismatch => {}
        }
    }

    /// Notes that every recipient has downloaded `set`.
    pub(crate) fn note_accepted(&self, set: &PoolSet) {
        self.demands.lock().retain(|peer, _| !set.recipients().contains(peer));
        for server in self.servers.iter().filter(|server| set.uses(server.client.server())) {
            set.recipients().iter().for_each(|peer| server.standing.note_success_at(peer));
        }
    }

    /// Asks servers that were silent whether they are back. Call it each second.
    pub async fn probe(&self) {
        let mut running = JoinSet::new();
        for server in self.servers.iter().filter(|server| server.standing.is_due()).cloned() {
            running.spawn(async move {
                match server.client.ping().await {
                    Ok(()) => {
                        server.standing.note_answer();
                        tracing::info!(server = %server.client.server(), "a pool server answers again");
                    }
                    refused => server.standing.note(&refused),
                }
            });
        }
        running.join_all().await;
    }

    /// Makes pools of `words` words on several servers for this site and `recipients`, and downloads them.
    ///
    /// # Errors
    /// [`PoolSetError::TooFewServers`] or [`PoolSetError::Random`].
    pub async fn make_set(
        self: &Arc<Self>,
        recipients: &BTreeSet<KmeId>,
        words: usize,
        ttl: Duration,
    ) -> Result<PoolSet, PoolSetError> {
        let created_at = self.clock.now();
        let mut readers = recipients.clone();
        readers.insert(self.local.clone());
        let deadline = Instant::now() + self.settings.set_timeout;
        let wanted = Wanted { readers: readers.into_iter().collect(), words, ttl, created_at, deadline };
        let id = PoolSetId::draw(&*self.random)?;
        let Gathered { made, missing } = self.gather(&wanted, recipients).await?;
        let (answered, needed) = (made.len(), self.pools_min());
        if answered < needed {
            self.release_spawned(made.into_iter().map(|pool| (pool.held.server, pool.held.id)));
            return Err(PoolSetError::TooFewServers { answered, needed, missing });
        }
        if answered < self.pools_per_set() {
            tracing::warn!(
                pools = answered,
                wanted = self.pools_per_set(),
                reasons = listed(&missing),
                "a pool set has fewer pools than configured"
            );
        }
        let expires_at = made.iter().map(|pool| pool.expires_at).fold(created_at.plus(ttl), Ord::min);
        let pools: Vec<HeldPool> = made.into_iter().map(|pool| pool.held).collect();
        let announced = AnnouncedSet { id, pools: Vec::new(), words, expires_at };
        Ok(PoolSet::new(&announced, recipients.clone(), pools, created_at))
    }

    /// Asks servers until enough have given a pool or none is left. Paused servers are asked only if the set
    /// would fail without them. While servers are silent, others are asked as well.
    async fn gather(
        self: &Arc<Self>,
        wanted: &Wanted,
        recipients: &BTreeSet<KmeId>,
    ) -> Result<Gathered, PoolSetError> {
        let (trusted, quarantined): (Vec<_>, Vec<_>) = self
            .in_random_order()?
            .into_iter()
            .partition(|server| server.standing.is_trusted_for(recipients));
        let (paused, ready): (Vec<_>, Vec<_>) =
            trusted.into_iter().partition(|server| server.standing.is_paused_for(recipients));
        let mut gathered = Gathered::default();
        for server in quarantined {
            let name = server.client.server().clone();
            let reason =
                format!("pool server {name} is under quarantine: its pool differed between the sites");
            gathered.missing.insert(name, reason);
        }
        if paused.len() + ready.len() < self.pools_min() {
            return Ok(gathered);
        }
        let mut queue = ready.into_iter();
        let mut reserve = Some(paused);
        let mut running = JoinSet::new();
        let patience = self.settings.set_timeout / PATIENCE_PART;
        // Servers that are silent do not count as asked.
        let mut silent = 0;
        loop {
            while gathered.made.len() + running.len() < self.pools_per_set() + silent
                && let Some(server) = queue.next()
            {
                running.spawn(Arc::clone(self).attempt(server, wanted.clone()));
            }
            silent = silent.min(running.len());
            let more = queue.len() > 0;
            let waiting = running.join_next();
            let joined = if more { timeout(patience, waiting).await.ok() } else { Some(waiting.await) };
            match joined {
                None => silent = running.len(),
                Some(Some(Ok((_, Ok(pool))))) => gathered.made.push(pool),
                Some(Some(Ok((server, Err(reason))))) => {
                    gathered.missing.insert(server, causes(&reason));
                }
                Some(Some(Err(error))) => {
                    tracing::error!(%error, "a task that asked a pool server ended without a result");
                }
                Some(None) => match reserve.take() {
                    Some(paused) if gathered.made.len() < self.pools_min() => queue = paused.into_iter(),
                    _ => return Ok(gathered),
                },
            }
            if gathered.made.len() >= self.pools_per_set() {
                self.release_late(running);
                return Ok(gathered);
            }
        }
    }

    /// Releases the pools of servers that were too slow for a set.
    fn release_late(self: &Arc<Self>, mut running: JoinSet<Attempt>) {
        if running.is_empty() {
            return;
        }
        let servers = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(joined) = running.join_next().await {
                if let Ok((server, Ok(pool))) = joined {
                    servers.release_spawned([(server, pool.held.id)]);
                }
            }
        });
    }

    /// One pool from one server: made and downloaded, or released again.
    async fn attempt(self: Arc<Self>, server: Arc<PoolServer>, wanted: Wanted) -> Attempt {
        let client = &server.client;
        let result = match client.create(wanted.words, wanted.readers, wanted.ttl).await {
            Err(error) => Err(error),
            Ok(made) if made.expires_at < wanted.created_at.plus(wanted.ttl / 2) => {
                self.release_spawned([(client.server().clone(), made.pool_id)]);
                Err(PoolClientError::Garbled {
                    server: client.server().clone(),
                    what: "an expiry that is too early (compare the clocks)",
                })
            }
            Ok(made) => match client.download(made.pool_id, wanted.words, wanted.deadline).await {
                Ok(words) => {
                    tracing::debug!(
                        server = %client.server(),
                        pool = %made.pool_id,
                        entropy_source = made.entropy_source,
                        "pool made and downloaded"
                    );
                    let held = HeldPool {
                        server: client.server().clone(),
                        id: made.pool_id,
                        words,
                        entropy_source: Some(made.entropy_source),
                    };
                    Ok(MadePool { held, expires_at: made.expires_at })
                }
                Err(error) => {
                    self.release_spawned([(client.server().clone(), made.pool_id)]);
                    Err(error)
                }
            },
        };
        server.standing.note(&result);
        (server.client.server().clone(), result)
    }

    /// Downloads the pools of a set that `source` announced.
    ///
    /// # Errors
    /// [`PoolSetError::Refused`] when the announcement breaks a rule, [`PoolSetError::Quarantined`] when it
    /// names a server that is not to be used, [`PoolSetError::Fetch`] when any pool cannot be downloaded: an
    /// incomplete set is useless.
    pub async fn fetch_set(
        self: &Arc<Self>,
        source: &KmeId,
        announced: &AnnouncedSet,
    ) -> Result<PoolSet, PoolSetError> {
        let servers = self.servers_of(announced)?;
        let sites = BTreeSet::from([source.clone()]);
        if let Some(server) = servers.iter().find(|server| !server.standing.is_trusted_for(&sites)) {
            return Err(PoolSetError::Quarantined(server.client.server().clone()));
        }
        let created_at = self.clock.now();
        // The source waits as long as this site would: it shall learn which server was too slow.
        let deadline = Instant::now() + self.settings.set_timeout * 3 / 4;
        let mut running = JoinSet::new();
        for (place, (server, pool)) in servers.into_iter().zip(announced.pools.clone()).enumerate() {
            let (words, by) = (announced.words, source.clone());
            running.spawn(async move {
                let result = server.client.download(pool.id, words, deadline).await;
                match &result {
                    // A refusal blames the announcement, not the server.
                    Err(PoolClientError::Refused { .. }) => {}
                    // The announcement may have named another length, to drive this site's sets to other servers.
                    Err(error @ PoolClientError::WrongLength { .. }) => {
                        server.standing.note_failure_at(&by, &causes(error));
                    }
                    _ => server.standing.note(&result),
                }
                result.map(|words| {
                    (place, HeldPool { server: pool.server, id: pool.id, words, entropy_source: None })
                })
            });
        }
        let mut pools = Vec::with_capacity(announced.pools.len());
        while let Some(joined) = running.join_next().await {
            pools.push(joined.map_err(|_| PoolSetError::CutShort)?.map_err(PoolSetError::Fetch)?);
        }
        pools.sort_by_key(|(place, _)| *place);
        let pools = pools.into_iter().map(|(_, pool)| pool).collect();
        Ok(PoolSet::new(announced, BTreeSet::new(), pools, created_at))
    }

    /// The configured servers that an announcement names, in its order.
    fn servers_of(&self, announced: &AnnouncedSet) -> Result<Vec<Arc<PoolServer>>, PoolSetError> {
        let refused = |text: String| PoolSetError::Refused(text);
        if !(MIN_POOLS..=MAX_POOLS).contains(&announced.pools.len()) {
            return Err(refused(format!("a set has {MIN_POOLS} to {MAX_POOLS} pools")));
        }
        if !announced.words.is_power_of_two() || !(MIN_POOL_WORDS..=MAX_POOL_WORDS).contains(&announced.words)
        {
            return Err(refused(format!("a pool cannot have {} words", announced.words)));
        }
        let names: BTreeSet<&PoolServerId> = announced.pools.iter().map(|pool| &pool.server).collect();
        let ids: BTreeSet<PoolId> = announced.pools.iter().map(|pool| pool.id).collect();
        if names.len() < announced.pools.len() || ids.len() < announced.pools.len() {
            return Err(refused("its pools must be distinct and on distinct servers".to_owned()));
        }
        if announced.expires_at <= self.clock.now() {
            return Err(refused("it has expired (compare the clocks)".to_owned()));
        }
        let find = |pool: &AnnouncedPool| {
            self.find(&pool.server)
                .ok_or_else(|| refused(format!("pool server {} is not configured here", pool.server)))
        };
        announced.pools.iter().map(find).collect()
    }

    /// Looks at who read the pools of `set`, which this site made. `true`: somebody did who should not have.
    pub(super) async fn was_read_by_others(&self, set: &PoolSet) -> bool {
        let retired = self.retired(set);
        let found = self.extra_reads_of(&retired).await;
        if !found.is_empty() && set.raise_alarm() {
            self.reads.alarm(&retired.set, retired.bits_drawn, &found);
            self.doubt(&retired, &found);
        }
        !found.is_empty()
    }

    /// Checks who read the pools of `set` and erases them at their servers; best effort, in the background.
    pub fn release(self: &Arc<Self>, set: &PoolSet) {
        // Without the set itself: its memory is free at once.
        let (servers, retired) = (Arc::clone(self), self.retired(set));
        let Ok(permit) = Arc::clone(&self.releases).try_acquire_owned() else {
            tracing::debug!(set = retired.set, "too many releases under way; the pools expire");
            return;
        };
        tokio::spawn(async move {
            servers.retire(&retired).await;
            drop(permit);
        });
    }

    /// As [`Self::release`], but waits until it is done: for a graceful stop.
    pub async fn release_now(&self, set: &PoolSet) {
        self.retire(&self.retired(set)).await;
    }

    fn retired(&self, set: &PoolSet) -> Retired {
        let mut readers = set.recipients().clone();
        readers.insert(self.local.clone());
        Retired {
            set: set.id().to_string(),
            pools: set.announcement().pools,
            readers,
            bits_drawn: set.total_bits() - set.left_bits(),
            has_alarm: set.has_alarm(),
        }
    }

    async fn retire(&self, retired: &Retired) {
        if !retired.has_alarm {
            let found = self.extra_reads_of(retired).await;
            self.reads.alarm(&retired.set, retired.bits_drawn, &found);
            self.doubt(retired, &found);
        }
        let pools = retired.pools.iter().filter_map(|pool| Some((self.find(&pool.server)?, pool.id)));
        join_all(pools.map(|(server, id)| erase(server, id))).await;
    }

    /// Prefers other servers to those that counted reads which the other servers of the set did not: else one
    /// that invents readers would have every set retired. A daemon that restarted reads all pools again. It
    /// counts for sets shared with the reader; for those of the whole set if its readers do not include it.
    fn doubt(&self, retired: &Retired, found: &[ExtraRead]) {
        for read in found {
            if found.iter().filter(|other| other.reader == read.reader).count() >= retired.pools.len() {
                continue;
            }
            let Some(server) = self.find(&read.server) else { continue };
            let is_peer = read.reader != self.local && retired.readers.contains(&read.reader);
            let peers = retired.readers.iter().filter(|peer| **peer != self.local);
            peers
                .filter(|peer| !is_peer || **peer == read.reader)
                .for_each(|peer| server.standing.note_doubt(peer));
        }
    }

    async fn extra_reads_of(&self, retired: &Retired) -> Vec<ExtraRead> {
        let of = async |pool: &AnnouncedPool| {
            let Some(server) = self.find(&pool.server) else { return Vec::new() };
            match server.client.reads(pool.id).await {
                Ok(counts) => self.reads.unexpected((&pool.server, pool.id), &retired.readers, counts),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(server = %pool.server, error, "a pool server gave no read counts");
                    Vec::new()
                }
            }
        };
        join_all(retired.pools.iter().map(of)).await.into_iter().flatten().collect()
    }

    /// Erases pools that are in no set.
    fn release_spawned(&self, pools: impl IntoIterator<Item = (PoolServerId, PoolId)>) {
        for (name, id) in pools {
            let Some(server) = self.find(&name) else { continue };
            let Ok(permit) = Arc::clone(&self.releases).try_acquire_owned() else {
                tracing::debug!(server = %name, pool = %id, "too many releases under way; the pool expires");
                continue;
            };
            tokio::spawn(async move {
                erase(server, id).await;
                drop(permit);
            });
        }
    }

    fn find(&self, name: &PoolServerId) -> Option<Arc<PoolServer>> {
        self.servers.iter().find(|server| server.client.server() == name).cloned()
    }

    fn in_random_order(&self) -> Result<Vec<Arc<PoolServer>>, PoolSetError> {
        let mut tagged = Vec::with_capacity(self.servers.len());
        for server in &self.servers {
            let mut tag = [0; 8];
            self.random.fill(&mut tag)?;
            tagged.push((tag, Arc::clone(server)));
        }
        tagged.sort_by_key(|(tag, _)| *tag);
        Ok(tagged.into_iter().map(|(_, server)| server).collect())
    }
}

async fn erase(server: Arc<PoolServer>, id: PoolId) {
    if let Err(error) = server.client.release(id).await {
        let (name, error) = (server.client.server(), &error as &dyn std::error::Error);
        tracing::debug!(server = %name, pool = %id, error, "a pool was not released; it expires");
    }
}
