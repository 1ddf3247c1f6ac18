//! The pool sets that this site makes and draws keys from: one set after another for each group of recipient
//! sites.
//!
//! A set is announced to its recipients before the first bit is drawn from it. Its budget is spent under a
//! lock, and it is never used close to its expiry. Each group makes one set at a time.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval};

use blast::{Budget, MIN_POOL_WORDS};
use futures_util::{StreamExt as _, stream};
use kme::{Backoff, Clock, KmeId, PoolServerId, PoolSetId, Timestamp};
use parking_lot::Mutex;

use super::error::PoolSetError;
use super::flight::Flight;
use super::quota::{Quota, Reservation};
use super::servers::PoolServers;
use super::set::{PoolSet, SetTrouble};

/// How many new sets one request waits for before it fails: other requests may use them up first.
const WAITS_MAX: usize = 4;

/// Pause after a failed renewal in the background.
const RENEWAL_PAUSE: Duration = Duration::from_secs(2);

/// Pause before a set is tried again that pool servers did not provide.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// How often to check whether batches still use a retired set.
const RETIRE_POLL: Duration = Duration::from_millis(200);

/// A set is renewed when less than this part of its budget or life is left.
const LOW_WATER_PART: u64 = 4;

/// How long callers are told at once that no set could be made, while it is tried again.
const FAILURE_SHOWN: Duration = Duration::from_secs(10);

/// Pauses before another set is made when one after the other is given up: a recipient that refuses every set,
/// or every second batch, must not use up what the pool servers grant this site. The first cost no pause.
const GIVEN_UP_PAUSE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
const GIVEN_UP_FREE: u32 = 2;
/// A set that every recipient has confirmed, and that was in use for so long, ends such a row.
const LASTED: Duration = Duration::from_mins(1);

/// As [`GIVEN_UP_PAUSE`], for sets that a recipient did not take. Short, because it may only be restarting.
const NOT_TAKEN_PAUSE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));

/// How often the readers of a set are looked at while keys are drawn from it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An idle set is looked at only every so many times.
const IDLE_LOOKS: u32 = 6;
/// Sets looked at at once.
const LOOKS_AT_ONCE: usize = 8;

/// Why an announcement failed. It is logged, so it must not hold secrets.
#[derive(Debug, thiserror::Error)]
#[error("a recipient did not take it")]
pub struct AnnounceError {
    /// What the recipient said that helps to make a better set, and who that was.
    pub trouble: Option<(KmeId, SetTrouble)>,
    /// The failure.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl AnnounceError {
    /// Whether a set of other servers may be accepted.
    fn blames_servers(&self) -> bool {
        matches!(self.trouble, Some((_, SetTrouble::PoolServers { .. })))
    }
}

/// The future of [`SetAnnouncer::announce`].
pub type Announcing<'a> = Pin<Box<dyn Future<Output = Result<(), AnnounceError>> + Send + 'a>>;

/// Tells recipients of a new set, so that they download it before it is used.
pub trait SetAnnouncer: Send + Sync {
    /// Announces `set` to all of its [`PoolSet::recipients`]. Returns when a replica of each has accepted it.
    /// Must have its own deadline. Not called for sets without recipients.
    fn announce(&self, set: Arc<PoolSet>) -> Announcing<'_>;
}

/// How this site makes sets for itself.
#[derive(Clone, Debug)]
pub struct SourceSetsSettings {
    /// Words of each pool of a group's first set; a power of two.
    pub words_initial: usize,
    /// Most words of a pool, however great the demand; a power of two.
    pub words_max: usize,
    /// Life of a set.
    pub ttl: Duration,
    /// A set is not used for this long before its expiry, so that recipients still have it.
    pub expiry_margin: Duration,
    /// Most groups of recipients that are kept at once.
    pub groups_max: usize,
    /// Most bytes of all sets together.
    pub memory_max_bytes: u64,
}

/// Why no set can serve a request. Nothing was spent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceSetError {
    /// No set of the largest size holds that many bits; ask for less at once.
    #[error("{bits} bits are more than the largest pool set gives")]
    TooLarge {
        /// The bits asked for.
        bits: u64,
    },
    /// The pool servers did not provide a set; try later.
    #[error("no pool set could be made")]
    NotMade(#[source] Arc<PoolSetError>),
    /// A recipient did not accept the set; try later.
    #[error("a new pool set could not be announced")]
    NotAnnounced(#[source] Arc<AnnounceError>),
    /// Memory, groups or demand have reached their bounds; try later.
    #[error("no pool set now: {0}")]
    Busy(&'static str),
}

type Made = Result<(), SourceSetError>;

/// The remote sites that share a group's sets with this one.
type GroupKey = BTreeSet<KmeId>;

#[derive(Default)]
struct Group {
    current: Option<Arc<PoolSet>>,
    next: Option<Arc<PoolSet>>,
    flight: Option<Flight<Made>>,
    words: usize,
    renew_at: Option<Instant>,
    /// The last failure to make a set, when none was made since.
    failed: Option<(Instant, SourceSetError)>,
    /// Sets in a row that were given up soon after they were made, or before they served a batch.
    given_up: u32,
    /// Sets in a row that a recipient did not take.
    not_taken: u32,
    /// No set is made before.
    make_at: Option<Instant>,
    last_used: u64,
}

#[derive(Default)]
struct State {
    groups: HashMap<GroupKey, Group>,
    uses: u64,
    closed: bool,
}

/// Whether a group has a set for a request.
enum Step {
    Ready(Arc<PoolSet>),
    Wait(Flight<Made>),
}

/// All sets that this site made.
pub struct SourceSets {
    servers: Arc<PoolServers>,
    announcer: Arc<dyn SetAnnouncer>,
    settings: SourceSetsSettings,
    clock: Arc<dyn Clock>,
    memory: Arc<Quota>,
    state: Mutex<State>,
}

impl SourceSets {
    /// No sets yet; the first request of a group makes its first one.
    pub fn new(
        servers: Arc<PoolServers>,
        announcer: Arc<dyn SetAnnouncer>,
        settings: SourceSetsSettings,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let memory = Quota::new(settings.memory_max_bytes);
        Arc::new(Self { servers, announcer, settings, clock, memory, state: Mutex::default() })
    }

    /// A set for the remote sites of `group` (empty: this site alone) from whose budget `bits` have been
    /// taken. Makes and announces a new set when the current one is used up; concurrent callers share it. The
    /// set stays valid for at least the expiry margin.
    ///
    /// # Errors
    /// [`SourceSetError`]; nothing was spent.
    pub async fn acquire(
        self: &Arc<Self>,
        group: &BTreeSet<KmeId>,
        bits: u64,
    ) -> Result<Arc<PoolSet>, SourceSetError> {
        for _ in 0..WAITS_MAX {
            match self.step(group, bits)? {
                Step::Ready(set) => return Ok(set),
                Step::Wait(flight) => {
                    flight.wait().await.unwrap_or(Err(SourceSetError::Busy(
                        "the task that made it ended without a result",
                    )))?;
                }
            }
        }
        Err(SourceSetError::Busy("keys are used faster than the pool servers make pools"))
    }

    /// The most bits that one set can ever give at once.
    pub fn largest_bits(&self) -> u64 {
        Budget::for_pool_words(self.settings.words_max).left_bits()
    }

    /// Retires a set before its time: a recipient cannot use it, a pool of it differs between the sites, or
    /// somebody read it who should not have.
    pub fn discard(self: &Arc<Self>, group: &BTreeSet<KmeId>, id: PoolSetId) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let Some(group) = state.groups.get_mut(group) else { return };
        for place in [&mut group.current, &mut group.next] {
            if let Some(set) = place.take_if(|set| set.id() == id) {
                let has_lasted = set.is_proven() && set.created_at().plus(LASTED) <= now;
                group.given_up = if has_lasted { 1 } else { group.given_up.saturating_add(1) };
                let pause = GIVEN_UP_PAUSE.after(group.given_up.saturating_sub(GIVEN_UP_FREE));
                group.make_at = Some(Instant::now() + pause);
                self.retire(set);
            }
        }
    }

    /// Retires every set that is shared with `peer` and has a pool of `server`: the two sites do not trust
    /// that server any more.
    pub fn avoid(self: &Arc<Self>, server: &PoolServerId, peer: &KmeId) {
        let mut state = self.state.lock();
        for (_, group) in state.groups.iter_mut().filter(|(key, _)| key.contains(peer)) {
            for place in [&mut group.current, &mut group.next] {
                if let Some(set) = place.take_if(|set| set.uses(server)) {
                    self.retire(set);
                }
            }
        }
    }

    /// The pool servers that sets are made on.
    pub fn servers(&self) -> &Arc<PoolServers> {
        &self.servers
    }

    /// Looks again and again at who read the pools of the sets in use; never ends. A set that somebody read
    /// who should not have is retired at once.
    pub async fn watch_readers(self: Arc<Self>) {
        let mut ticks = interval(LOOK_EVERY);
        let (mut round, mut drawn) = (0_u32, HashMap::<PoolSetId, u64>::new());
        loop {
            ticks.tick().await;
            round = round.wrapping_add(1);
            let mut seen = HashMap::new();
            let mut due = Vec::new();
            for (key, set) in self.all() {
                let left_bits = set.left_bits();
                let is_used = drawn.get(&set.id()) != Some(&left_bits);
                seen.insert(set.id(), left_bits);
                if is_used || round.is_multiple_of(IDLE_LOOKS) {
                    due.push((key, set));
                }
            }
            drawn = seen;
            let looks = due.into_iter().map(|(key, set)| self.look(key, set));
            stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).collect::<()>().await;
        }
    }

    async fn look(self: &Arc<Self>, key: GroupKey, set: Arc<PoolSet>) {
        if self.servers.was_read_by_others(&set).await {
            self.discard(&key, set.id());
        }
    }

    fn all(&self) -> Vec<(GroupKey, Arc<PoolSet>)> {
        let state = self.state.lock();
        let of = |(key, group): (&GroupKey, &Group)| {
            let sets = group.current.iter().chain(&group.next);
            sets.map(|set| (key.clone(), Arc::clone(set))).collect::<Vec<_>>()
        };
        state.groups.iter().flat_map(of).collect()
    }

    /// Retires sets near their expiry; call it each second, inside the runtime.
    pub fn sweep(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        for group in state.groups.values_mut() {
            self.retire_unusable(group, now);
        }
    }

    /// Ends the making of sets and erases all of them at their servers: for a graceful stop.
    pub async fn close(&self) {
        let sets: Vec<Arc<PoolSet>> = {
            let mut state = self.state.lock();
            state.closed = true;
            let groups = std::mem::take(&mut state.groups);
            groups.into_values().flat_map(|group| group.current.into_iter().chain(group.next)).collect()
        };
        for set in sets {
            self.servers.release_now(&set).await;
        }
    }

    /// Sets that keys can be drawn from, of all groups.
    pub fn count(&self) -> usize {
        let state = self.state.lock();
        let sets =
            state.groups.values().map(|group| group.current.iter().count() + group.next.iter().count());
        sets.sum()
    }

    /// Bytes of all sets, including those just being made and those that batches still use.
    pub fn used_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }

    fn step(self: &Arc<Self>, key: &GroupKey, bits: u64) -> Result<Step, SourceSetError> {
        if bits > self.largest_bits() {
            return Err(SourceSetError::TooLarge { bits });
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        let group = self.group(&mut state, key)?;
        self.retire_unusable(group, now);
        for _ in 0..2 {
            if let Some(set) = group.current.as_ref().filter(|set| set.spend(bits).is_ok()).cloned() {
                self.renew_if_low(key, group, &set, now);
                return Ok(Step::Ready(set));
            }
            if let Some(next) = group.next.take()
                && let Some(old) = group.current.replace(next)
            {
                self.retire(old);
            }
        }
        self.flight(key, group, bits, now).map(Step::Wait)
    }

    /// The group of `key`, added if it is new. If there is no room, drops the least recently used group.
    fn group<'a>(
        self: &Arc<Self>,
        state: &'a mut State,
        key: &GroupKey,
    ) -> Result<&'a mut Group, SourceSetError> {
        if state.closed {
            return Err(SourceSetError::Busy("the daemon stops"));
        }
        if !state.groups.contains_key(key) && state.groups.len() >= self.settings.groups_max {
            let idle = state.groups.iter().filter(|(_, group)| group.is_idle());
            let oldest = idle.min_by_key(|(_, group)| group.last_used).map(|(key, _)| key.clone());
            let oldest = oldest.ok_or(SourceSetError::Busy("too many groups of sites"))?;
            if let Some(group) = state.groups.remove(&oldest) {
                group.current.into_iter().chain(group.next).for_each(|set| self.retire(set));
            }
        }
        state.uses += 1;
        let group = state.groups.entry(key.clone()).or_default();
        group.last_used = state.uses;
        Ok(group)
    }

    fn is_usable(&self, set: &PoolSet, now: Timestamp) -> bool {
        now.plus(self.settings.expiry_margin) < set.expires_at()
    }

    fn retire_unusable(self: &Arc<Self>, group: &mut Group, now: Timestamp) {
        for place in [&mut group.current, &mut group.next] {
            if let Some(set) = place.take_if(|set| !self.is_usable(set, now)) {
                group.words = grown(&set, now, &self.settings);
                self.retire(set);
            }
        }
    }

    /// Erases `set` at its servers as soon as no batch uses it, at the latest when it expires.
    fn retire(self: &Arc<Self>, set: Arc<PoolSet>) {
        let (servers, clock) = (Arc::clone(&self.servers), Arc::clone(&self.clock));
        tokio::spawn(async move {
            while Arc::strong_count(&set) > 1 && clock.now() < set.expires_at() {
                tokio::time::sleep(RETIRE_POLL).await;
            }
            servers.release(&set);
        });
    }

    fn renew_if_low(self: &Arc<Self>, key: &GroupKey, group: &mut Group, set: &PoolSet, now: Timestamp) {
        let budget_low = set.left_bits() < set.total_bits() / LOW_WATER_PART;
        let life = life_ms(set);
        let left = ms(set.expires_at().since(now));
        let is_low = budget_low || left < life / LOW_WATER_PART;
        let is_paused = group.renew_at.is_some_and(|at| Instant::now() < at);
        if is_low
            && group.next.is_none()
            && !is_paused
            && let Err(error) = self.flight(key, group, 0, now)
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "a pool set cannot be renewed now");
            group.renew_at = Some(Instant::now() + RENEWAL_PAUSE);
        }
    }

    /// The flight that makes the group's next set: the one under way, or a new one.
    fn flight(
        self: &Arc<Self>,
        key: &GroupKey,
        group: &mut Group,
        bits: u64,
        now: Timestamp,
    ) -> Result<Flight<Made>, SourceSetError> {
        // While no set can be made, callers learn why at once, and one task at a time tries again.
        let failed = group.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_SHOWN);
        let failed = failed.map(|(_, error)| error.clone());
        if let Some(flight) = group.flight.as_ref().filter(|flight| !flight.is_over()) {
            return failed.map_or_else(|| Ok(flight.clone()), Err);
        }
        if group.make_at.is_some_and(|at| Instant::now() < at) {
            return Err(failed.unwrap_or(SourceSetError::Busy("several pool sets in a row were rejected")));
        }
        if let Some(set) = &group.current {
            group.words = grown(set, now, &self.settings);
        }
        let least = words_for(bits, &self.settings);
        let (words, granted) = self.grant(group.words.max(self.settings.words_initial), least)?;
        let (sets, key) = (Arc::clone(self), key.clone());
        let flight = Flight::start(async move {
            let mut made = sets.make(&key, words, granted).await;
            // A recipient could not use a server: without it, it may work.
            if let Err(SourceSetError::NotAnnounced(error)) = &made
                && error.blames_servers()
                && let Ok((words, granted)) = sets.grant(words, words)
            {
                made = sets.make(&key, words, granted).await;
            }
            let landed = made.as_ref().ok().cloned();
            let result = sets.land(&key, made);
            if let Some(set) = landed {
                let (sets, key) = (Arc::clone(&sets), key.clone());
                tokio::spawn(async move { sets.look(key, set).await });
            }
            result
        });
        group.flight = Some(flight.clone());
        failed.map_or_else(|| Ok(flight), Err)
    }

    /// Memory for a set of `wanted` words, or of fewer down to `least` when it is short.
    fn grant(&self, wanted: usize, least: usize) -> Result<(usize, Reservation), SourceSetError> {
        let mut words = wanted.max(least).min(self.settings.words_max);
        loop {
            let bytes = (words as u64).saturating_mul(8 * self.servers.pools_per_set() as u64);
            if let Some(granted) = self.memory.reserve(bytes) {
                return Ok((words, granted));
            }
            if words / 2 < least {
                return Err(SourceSetError::Busy("the memory for pool sets is used up"));
            }
            words /= 2;
        }
    }

    async fn make(
        self: &Arc<Self>,
        key: &GroupKey,
        words: usize,
        granted: Reservation,
    ) -> Result<Arc<PoolSet>, SourceSetError> {
        let made = self.servers.make_set(key, words, self.settings.ttl).await;
        let set = made.map_err(|error| SourceSetError::NotMade(Arc::new(error)))?;
        let set = Arc::new(set.with_grant(granted));
        if !key.is_empty() {
            if let Err(error) = self.announcer.announce(Arc::clone(&set)).await {
                self.servers.release(&set);
                if let Some((peer, trouble)) = &error.trouble {
                    self.servers.heed(peer, trouble);
                }
                return Err(SourceSetError::NotAnnounced(Arc::new(error)));
            }
            self.servers.note_accepted(&set);
        }
        tracing::info!(set = %set.id(), words, expires_at = %set.expires_at(), "pool set ready");
        Ok(set)
    }

    /// Makes a new set available to requests.
    fn land(self: &Arc<Self>, key: &GroupKey, made: Result<Arc<PoolSet>, SourceSetError>) -> Made {
        let mut state = self.state.lock();
        let Some(group) = state.groups.get_mut(key) else {
            // Closed meanwhile.
            drop(state);
            if let Ok(set) = made {
                self.servers.release(&set);
            }
            return Err(SourceSetError::Busy("the daemon stops"));
        };
        group.flight = None;
        match made {
            Ok(set) => {
                group.renew_at = None;
                group.failed = None;
                group.not_taken = 0;
                let place = if group.current.is_none() { &mut group.current } else { &mut group.next };
                if let Some(old) = place.replace(set) {
                    self.retire(old);
                }
                Ok(())
            }
            Err(error) => {
                group.renew_at = Some(Instant::now() + RENEWAL_PAUSE);
                if matches!(&error, SourceSetError::NotAnnounced(_)) {
                    group.not_taken = group.not_taken.saturating_add(1);
                }
                let pause = match &error {
                    SourceSetError::NotMade(_) => FAILURE_PAUSE,
                    _ => NOT_TAKEN_PAUSE.after(group.not_taken.saturating_sub(GIVEN_UP_FREE)),
                };
                // Without a pause it may pass at once: callers wait for the next set.
                if !pause.is_zero() {
                    group.failed = Some((Instant::now(), error.clone()));
                    group.make_at = group.make_at.max(Some(Instant::now() + pause));
                }
                tracing::warn!(error = &error as &dyn std::error::Error, "no new pool set could be made");
                Err(error)
            }
        }
    }
}

impl Group {
    fn is_idle(&self) -> bool {
        self.flight.as_ref().is_none_or(Flight::is_over)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn life_ms(set: &PoolSet) -> u64 {
    ms(set.expires_at().since(set.created_at()))
}

/// Words of the set after `set`: twice as many when it would last less than a quarter of its life at the
/// rate so far, half as many when it would last more than four lives.
fn grown(set: &PoolSet, now: Timestamp, settings: &SourceSetsSettings) -> usize {
    let spent = u128::from(set.total_bits() - set.left_bits());
    let elapsed = u128::from(ms(now.since(set.created_at())));
    let lasts_times_spent = elapsed * u128::from(set.total_bits());
    let life_times_spent = u128::from(life_ms(set)) * spent;
    if spent > 0 && lasts_times_spent * u128::from(LOW_WATER_PART) < life_times_spent {
        return set.words().saturating_mul(2).min(settings.words_max);
    }
    if lasts_times_spent > life_times_spent * u128::from(LOW_WATER_PART) {
        return (set.words() / 2).max(settings.words_initial).min(settings.words_max);
    }
    set.words()
}

/// Fewest words of a set that serves `bits` at once: a word for every four bits leaves room for the sample
/// (at most a quarter of the pool) and for four such requests.
fn words_for(bits: u64, settings: &SourceSetsSettings) -> usize {
    let words = usize::try_from(bits.div_ceil(4)).unwrap_or(usize::MAX).checked_next_power_of_two();
    words.unwrap_or(usize::MAX).max(MIN_POOL_WORDS).min(settings.words_max)
}
