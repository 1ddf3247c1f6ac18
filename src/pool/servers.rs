//! The configured pool servers: makes pool sets on them, fetches announced sets, releases old ones.
//!
//! Servers are chosen at random among those that answer; one that failed is not asked for a while. A peer may
//! name a server; its address comes only from the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use blast::{MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS};
use kme::{Backoff, Clock, KmeId, PoolId, PoolServerId, PoolSetId, Random, RandomError, Timestamp, causes};
use parking_lot::Mutex;

use super::client::{PoolClient, PoolClientError};
use super::set::{AnnouncedPool, AnnouncedSet, HeldPool, PoolSet};
use super::wire::ReaderCount;

/// How long a server is not asked after it failed.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_mins(1));

/// Most releases under way or waiting; further pools are left to expire.
const RELEASES_MAX: usize = 256;

/// How sets are made.
#[derive(Clone, Debug)]
pub struct PoolServersSettings {
    /// Pools of a set when enough servers answer; 2 to 8.
    pub pools_per_set: usize,
    /// Longest time for making or fetching a whole set.
    pub set_timeout: Duration,
    /// How often each reader may download one pool before a warning: once for each replica of its site. Once
    /// for a reader that is not listed. The source itself downloads a pool once, however many replicas it
    /// has.
    pub reads_expected: BTreeMap<KmeId, u64>,
}

/// Why a set could not be made or fetched.
#[derive(Debug, thiserror::Error)]
pub enum PoolSetError {
    /// Too few servers answered; try later. Pools already made are being released.
    #[error("{answered} pool servers answered, {needed} are needed{}", listed(.reasons))]
    TooFewServers {
        /// Servers that gave a pool.
        answered: usize,
        /// Fewest servers of a set.
        needed: usize,
        /// What the others said.
        reasons: Vec<PoolClientError>,
    },
    /// The announcement breaks a rule: the source must change it.
    #[error("the announced pool set is refused: {0}")]
    Refused(String),
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

/// What every server said, with its causes: an operator sees only this text.
fn listed(reasons: &[PoolClientError]) -> String {
    let mut text = String::new();
    for reason in reasons {
        text.push_str("; ");
        text.push_str(&causes(reason));
    }
    text
}

#[derive(Default)]
struct Health {
    failures: u32,
    retry_at: Option<Instant>,
}

struct PoolServer {
    client: PoolClient,
    health: Mutex<Health>,
}

impl PoolServer {
    fn is_paused(&self) -> bool {
        let health = self.health.lock();
        health.retry_at.is_some_and(|at| Instant::now() < at)
    }

    fn note<T>(&self, result: &Result<T, PoolClientError>) {
        let mut health = self.health.lock();
        match result {
            Ok(_) => *health = Health::default(),
            Err(error) if error.blames_server() => {
                health.failures = health.failures.saturating_add(1);
                health.retry_at = Some(Instant::now() + PAUSE.after(health.failures));
            }
            Err(_) => {}
        }
    }
}

/// A pool that was made and downloaded, but is not in a set yet.
struct MadePool {
    held: HeldPool,
    expires_at: Timestamp,
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
    reads_expected: Arc<BTreeMap<KmeId, u64>>,
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
        let server = |client| Arc::new(PoolServer { client, health: Mutex::default() });
        let reads_expected = Arc::new(settings.reads_expected.clone());
        Arc::new(Self {
            local,
            servers: clients.into_iter().map(server).collect(),
            reads_expected,
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

    /// The configured servers that are not paused after a failure.
    pub fn available(&self) -> Vec<PoolServerId> {
        self.servers
            .iter()
            .filter(|server| !server.is_paused())
            .map(|server| server.client.server().clone())
            .collect()
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
        let (made, reasons) = self.gather(&wanted).await?;
        if made.len() < MIN_POOLS {
            let answered = made.len();
            self.release_spawned(made.into_iter().map(|pool| (pool.held.server, pool.held.id)));
            return Err(PoolSetError::TooFewServers { answered, needed: MIN_POOLS, reasons });
        }
        if made.len() < self.pools_per_set() {
            tracing::warn!(
                pools = made.len(),
                wanted = self.pools_per_set(),
                reasons = listed(&reasons),
                "a pool set has fewer pools than configured"
            );
        }
        let expires_at = made.iter().map(|pool| pool.expires_at).fold(created_at.plus(ttl), Ord::min);
        let pools: Vec<HeldPool> = made.into_iter().map(|pool| pool.held).collect();
        let announced = AnnouncedSet { id, pools: Vec::new(), words, expires_at };
        Ok(PoolSet::new(&announced, recipients.clone(), pools, created_at))
    }

    /// Asks servers until enough have given a pool or none is left. Paused servers are asked only if a set
    /// would fail without them.
    async fn gather(
        self: &Arc<Self>,
        wanted: &Wanted,
    ) -> Result<(Vec<MadePool>, Vec<PoolClientError>), PoolSetError> {
        let (paused, ready): (Vec<_>, Vec<_>) =
            self.in_random_order()?.into_iter().partition(|server| server.is_paused());
        let mut queue = ready.into_iter();
        let mut reserve = Some(paused);
        let (mut made, mut reasons) = (Vec::new(), Vec::new());
        let mut running = JoinSet::new();
        loop {
            while made.len() + running.len() < self.pools_per_set()
                && let Some(server) = queue.next()
            {
                running.spawn(Arc::clone(self).attempt(server, wanted.clone()));
            }
            match running.join_next().await {
                Some(Ok(Ok(pool))) => made.push(pool),
                Some(Ok(Err(reason))) => reasons.push(reason),
                Some(Err(error)) => {
                    tracing::error!(%error, "a task that asked a pool server ended without a result");
                }
                None => match reserve.take() {
                    Some(paused) if made.len() < MIN_POOLS => queue = paused.into_iter(),
                    _ => return Ok((made, reasons)),
                },
            }
        }
    }

    /// One pool from one server: made and downloaded, or released again.
    async fn attempt(
        self: Arc<Self>,
        server: Arc<PoolServer>,
        wanted: Wanted,
    ) -> Result<MadePool, PoolClientError> {
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
        server.note(&result);
        result
    }

    /// Downloads the pools of a set that another site announced.
    ///
    /// # Errors
    /// [`PoolSetError::Refused`] when the announcement breaks a rule, [`PoolSetError::Fetch`] when any pool
    /// cannot be downloaded: an incomplete set is useless.
    pub async fn fetch_set(self: &Arc<Self>, announced: &AnnouncedSet) -> Result<PoolSet, PoolSetError> {
        let servers = self.servers_of(announced)?;
        let created_at = self.clock.now();
        let deadline = Instant::now() + self.settings.set_timeout;
        let mut running = JoinSet::new();
        for (place, (server, pool)) in servers.into_iter().zip(announced.pools.clone()).enumerate() {
            let words = announced.words;
            running.spawn(async move {
                let result = server.client.download(pool.id, words, deadline).await;
                // A refusal blames the announcement, not the server.
                if !matches!(result, Err(PoolClientError::Refused { .. })) {
                    server.note(&result);
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

    /// Checks who read the pools of `set` and erases them at their servers; best effort, in the background.
    pub fn release(self: &Arc<Self>, set: &PoolSet) {
        self.release_spawned(set.announcement().pools.into_iter().map(|pool| (pool.server, pool.id)));
    }

    /// As [`Self::release`], but waits until it is done: for a graceful stop.
    pub async fn release_now(&self, set: &PoolSet) {
        let mut running = JoinSet::new();
        for pool in set.announcement().pools {
            if let Some(server) = self.find(&pool.server) {
                running.spawn(retire(server, pool.id, Arc::clone(&self.reads_expected)));
            }
        }
        running.join_all().await;
    }

    fn release_spawned(&self, pools: impl IntoIterator<Item = (PoolServerId, PoolId)>) {
        for (name, id) in pools {
            let Some(server) = self.find(&name) else { continue };
            let Ok(permit) = Arc::clone(&self.releases).try_acquire_owned() else {
                tracing::debug!(server = %name, pool = %id, "too many releases under way; the pool expires");
                continue;
            };
            let reads_expected = Arc::clone(&self.reads_expected);
            tokio::spawn(async move {
                retire(server, id, reads_expected).await;
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

/// The readers that began more downloads than expected, each with their number.
fn unexpected(
    counts: Vec<ReaderCount>,
    reads_expected: &BTreeMap<KmeId, u64>,
) -> impl Iterator<Item = (ReaderCount, u64)> {
    counts.into_iter().filter_map(|count| {
        let expected = reads_expected.get(&count.reader).copied().unwrap_or(1);
        (count.started > expected).then_some((count, expected))
    })
}

/// Checks the read counts of a pool, logs a warning if somebody read it more often than expected, and erases
/// it.
async fn retire(server: Arc<PoolServer>, id: PoolId, reads_expected: Arc<BTreeMap<KmeId, u64>>) {
    let name = server.client.server();
    match server.client.reads(id).await {
        Ok(counts) => {
            for (count, expected) in unexpected(counts, &reads_expected) {
                tracing::warn!(
                    server = %name,
                    pool = %id,
                    reader = %count.reader,
                    started = count.started,
                    completed = count.completed,
                    expected,
                    "unexpected extra read of a pool"
                );
            }
        }
        Err(error) => {
            tracing::debug!(
                server = %name, error = &error as &dyn std::error::Error,
                "a pool server gave no read counts"
            );
        }
    }
    if let Err(error) = server.client.release(id).await {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(server = %name, pool = %id, error, "a pool was not released; it expires");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_with_more_downloads_than_expected_is_an_alarm() {
        let count =
            |reader: &str, started| ReaderCount { reader: reader.parse().unwrap(), started, completed: 0 };
        let counts = vec![count("site-a", 1), count("site-b", 2), count("site-c", 0)];
        let alarms: Vec<_> = unexpected(counts.clone(), &BTreeMap::new()).collect();
        assert_eq!(alarms, [(count("site-b", 2), 1)]);
        let two_replicas = BTreeMap::from([("site-b".parse().unwrap(), 2)]);
        assert_eq!(unexpected(counts, &two_replicas).count(), 0);
        let third = unexpected(vec![count("site-b", 3), count("site-a", 2)], &two_replicas);
        assert_eq!(third.collect::<Vec<_>>(), [(count("site-b", 3), 2), (count("site-a", 2), 1)]);
    }
}
