//! Answers that clients have not read: how many bytes wait, on each connection and in all.
//!
//! Bytes count from when an answer is made until the system has taken them for sending, whatever HTTP version
//! carries them. While a connection has too many, its further requests do not begin. A connection that reads
//! nothing, or too slowly, is cut. If there is too much in all, the client with the most loses connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ListenerLimits;
use super::counts::{Cut, ListenerCounts};

/// What an answer is taken to have before the first one on a connection is known. Bounds what is made at once
/// for a client that has not shown that it reads.
const FIRST_ANSWER_BYTES: usize = 64 * 1024;
/// Times that are told apart when answers are looked at by their age, a power of two.
const AGES: usize = 16;
/// Ages that the longest time for an answer is divided into. Fewer than [`AGES`], so that an answer that is
/// too old is not taken for a new one.
const AGES_MAX: u32 = 12;

/// The unread answers of one listener.
pub(super) struct Unsent {
    limits: ListenerLimits,
    counts: Arc<ListenerCounts>,
    started: Instant,
    /// The length of one age, in microseconds.
    age_us: u64,
    next: AtomicU64,
    accounts: Mutex<HashMap<u64, Arc<Account>>>,
    /// There is too much in all.
    excess: Notify,
}

/// The unread answers of one connection.
pub(super) struct Account {
    all: Arc<Unsent>,
    number: u64,
    /// Who the client is: those with one name count together.
    name: String,
    state: Mutex<State>,
    /// Whether requests wait in [`Account::begin`].
    is_awaited: AtomicBool,
    /// A request may perhaps begin.
    room: Notify,
    cut: CancellationToken,
    /// When the certificates must be verified again, in seconds since 1970.
    check_at_s: AtomicU64,
    check: Notify,
}

struct State {
    unsent_bytes: usize,
    /// `unsent_bytes` by the time when the answer was made.
    by_age: [usize; AGES],
    /// When bytes were last taken, or began to wait.
    progress_at: Instant,
    /// Requests whose answer is not made yet.
    in_work: usize,
    /// Size of an answer to expect: of the largest lately.
    expected_bytes: usize,
    ended: Option<Cut>,
}

/// The connection was cut, so its requests do not begin.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut")]
pub(super) struct WasCut;

impl Unsent {
    pub(super) fn new(limits: ListenerLimits, counts: Arc<ListenerCounts>) -> Arc<Self> {
        let (started, accounts) = (Instant::now(), Mutex::default());
        let age_us = micros(limits.answer_timeout / AGES_MAX).max(1);
        let (next, excess) = (AtomicU64::new(0), Notify::new());
        Arc::new(Self { limits, counts, started, age_us, next, accounts, excess })
    }

    /// The account of a new connection of the client `name`, until the [`OpenAccount`] is dropped.
    pub(super) fn open(self: &Arc<Self>, name: &str) -> OpenAccount {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let state = State {
            unsent_bytes: 0,
            by_age: [0; AGES],
            progress_at: Instant::now(),
            in_work: 0,
            expected_bytes: FIRST_ANSWER_BYTES.min(self.limits.unsent_max_bytes),
            ended: None,
        };
        let account = Arc::new(Account {
            all: Arc::clone(self),
            number,
            name: name.to_owned(),
            state: Mutex::new(state),
            is_awaited: AtomicBool::new(false),
            room: Notify::new(),
            cut: CancellationToken::new(),
            check_at_s: AtomicU64::new(u64::MAX),
            check: Notify::new(),
        });
        self.accounts.lock().insert(number, Arc::clone(&account));
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        OpenAccount(account)
    }

    /// Looks at all connections now and then, and at once when there is too much in all. Never returns.
    pub(super) async fn watch(&self) {
        let limits = &self.limits;
        let every = (limits.unread_timeout.min(limits.answer_timeout) / 8).min(Duration::from_secs(1));
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.excess.notified() => {}
            }
            self.inspect(Instant::now(), UnixTime::now());
        }
    }

    fn inspect(&self, now: Instant, clock: UnixTime) {
        let accounts = self.accounts.lock();
        let (mut all, mut by_name) = (0, HashMap::<&str, Waiting<'_>>::new());
        for account in accounts.values() {
            if account.check_at_s.load(Ordering::Relaxed) <= clock.as_secs() {
                account.check.notify_one();
            }
            let Some((bytes, progress_at)) = account.inspect(now) else { continue };
            all += bytes;
            let waiting = by_name.entry(&account.name).or_default();
            waiting.bytes += bytes;
            waiting.connections.push((progress_at, bytes, account));
        }
        for waiting in by_name.values_mut() {
            // The one that has not read for longest is the last.
            waiting.connections.sort_unstable_by_key(|(progress_at, ..)| std::cmp::Reverse(*progress_at));
        }
        while all > self.limits.unsent_all_max_bytes {
            let Some(most) = by_name.values_mut().max_by_key(|waiting| waiting.bytes) else { return };
            let Some((_, bytes, account)) = most.connections.pop() else { return };
            account.cut(Cut::Memory);
            most.bytes -= bytes;
            all -= bytes;
        }
    }

    fn is_excessive(&self) -> bool {
        self.counts.unsent_bytes() > self.limits.unsent_all_max_bytes
    }

    /// Where an answer that is made now counts in [`State::by_age`].
    fn age_of(&self, now: Instant) -> u64 {
        micros(now - self.started) / self.age_us
    }
}

/// What waits for one client.
#[derive(Default)]
struct Waiting<'a> {
    bytes: usize,
    connections: Vec<(Instant, usize, &'a Arc<Account>)>,
}

/// Keeps an account among those of its listener.
pub(super) struct OpenAccount(Arc<Account>);

impl std::ops::Deref for OpenAccount {
    type Target = Arc<Account>;

    fn deref(&self) -> &Arc<Account> {
        &self.0
    }
}

impl Drop for OpenAccount {
    fn drop(&mut self) {
        self.0.all.accounts.lock().remove(&self.0.number);
        self.0.all.counts.open.fetch_sub(1, Ordering::Relaxed);
        // Requests that still wait shall not begin.
        self.0.state.lock().ended.get_or_insert(Cut::Old);
        self.0.room.notify_waiters();
    }
}

impl Account {
    /// Begins a request if there is room for its answer.
    pub(super) fn try_begin(self: &Arc<Self>) -> Result<Option<InWork>, WasCut> {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return Err(WasCut);
        }
        let limits = &self.all.limits;
        let promised = state.in_work.saturating_mul(state.expected_bytes).saturating_add(state.unsent_bytes);
        let has_room = promised < limits.unsent_max_bytes;
        let waits_for_others = state.unsent_bytes > 0 && self.all.is_excessive();
        if promised > 0 && (!has_room || waits_for_others) {
            return Ok(None);
        }
        state.in_work += 1;
        Ok(Some(InWork { account: Arc::clone(self), answer: None }))
    }

    /// Begins a request as soon as there is room for its answer.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<InWork, WasCut> {
        loop {
            let room = self.room.notified();
            self.is_awaited.store(true, Ordering::SeqCst);
            if let Some(work) = self.try_begin()? {
                // There may be room for one more.
                self.room.notify_one();
                return Ok(work);
            }
            tokio::select! {
                () = room => {}
                () = self.cut.cancelled() => return Err(WasCut),
            }
        }
    }

    /// Waits until the connection has to be cut, and says why.
    pub(super) async fn to_cut(&self) -> Cut {
        self.cut.cancelled().await;
        self.state.lock().ended.unwrap_or(Cut::Stop)
    }

    /// Whether it was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// From now on no request begins, and the connection is to be cut.
    pub(super) fn cut(&self, reason: Cut) {
        self.state.lock().ended.get_or_insert(reason);
        self.cut.cancel();
    }

    /// Waits until the certificates must be verified again.
    pub(super) async fn to_check(&self) {
        self.check.notified().await;
    }

    /// Sets when that is, in seconds since 1970.
    pub(super) fn check_at(&self, second: Option<u64>) {
        self.check_at_s.store(second.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Notes that `bytes` wait. `is_timed`: their answer must be read in time. Returns where they count.
    pub(super) fn add(&self, bytes: usize, is_timed: bool) -> Option<usize> {
        let now = Instant::now();
        let age = is_timed.then(|| place_of(self.all.age_of(now)));
        let mut state = self.state.lock();
        if state.unsent_bytes == 0 {
            state.progress_at = now;
        }
        state.unsent_bytes += bytes;
        if let Some(waiting) = age.and_then(|age| state.by_age.get_mut(age)) {
            *waiting += bytes;
        }
        drop(state);
        let before = self.all.counts.unsent_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.all.limits.unsent_all_max_bytes {
            self.all.excess.notify_one();
        }
        age
    }

    /// Notes that `bytes` which counted at `age` were taken, or are not needed any more.
    pub(super) fn subtract(&self, bytes: usize, age: Option<usize>) {
        let mut state = self.state.lock();
        state.unsent_bytes -= bytes;
        state.progress_at = Instant::now();
        if let Some(waiting) = age.and_then(|age| state.by_age.get_mut(age)) {
            *waiting -= bytes;
        }
        drop(state);
        self.all.counts.unsent_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if self.is_awaited.load(Ordering::SeqCst) {
            self.room.notify_one();
        }
    }

    /// Cuts the connection if its client does not read. Otherwise returns what waits and since when nothing
    /// moved, if anything waits.
    fn inspect(&self, now: Instant) -> Option<(usize, Instant)> {
        let limits = &self.all.limits;
        let state = self.state.lock();
        if state.unsent_bytes == 0 || state.ended.is_some() {
            return None;
        }
        let (bytes, progress_at) = (state.unsent_bytes, state.progress_at);
        let age = self.all.age_of(now);
        let is_old = |before: u64| {
            let made = age.checked_sub(before).map(place_of);
            made.and_then(|place| state.by_age.get(place)).is_some_and(|bytes| *bytes > 0)
        };
        let is_slow = (u64::from(AGES_MAX) + 1..AGES as u64).any(is_old);
        drop(state);
        if now.saturating_duration_since(progress_at) >= limits.unread_timeout {
            self.cut(Cut::Unread);
            None
        } else if is_slow {
            self.cut(Cut::SlowReader);
            None
        } else {
            Some((bytes, progress_at))
        }
    }
}

/// For every answer, so without the division of 128 bits that [`Duration::as_micros`] makes.
fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(time.subsec_micros()))
}

fn place_of(age: u64) -> usize {
    usize::try_from(age % AGES as u64).unwrap_or(0)
}

/// A request whose answer is not made yet.
pub(super) struct InWork {
    account: Arc<Account>,
    answer: Option<usize>,
}

impl InWork {
    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The answer is made, with `bytes` of body that are noted already.
    pub(super) fn answered(mut self, bytes: usize) {
        self.answer = Some(bytes);
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        let mut state = self.account.state.lock();
        state.in_work -= 1;
        if let Some(bytes) = self.answer {
            let faded = state.expected_bytes - state.expected_bytes / 8;
            state.expected_bytes = faded.max(bytes).max(1);
        }
        drop(state);
        self.account.wake();
    }
}
