//! Who may ask how much: the limits that an operator sets for each identity, and what each has left of them.
//!
//! What is left belongs to the identity, not to a connection: whoever connects again finds it as it was.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::Clock as RateClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::ApiError;
use crate::metrics::LimitMeter;

/// How many seconds' worth of requests or keys may come at once after a pause.
const BURST_SECS: u32 = 5;
/// An identity at a limit is named in the log at most once in this time.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Limits of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Requests a second; `None` for no limit.
    pub requests_per_second: Option<NonZeroU32>,
    /// Keys a second that it gets, or pushes; `None` for no limit.
    pub keys_per_second: Option<NonZeroU32>,
    /// Connections at once.
    pub connections: usize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { requests_per_second: None, keys_per_second: None, connections: usize::MAX }
    }
}

/// The limits of all identities of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitTable {
    /// Of those that the configuration lists.
    pub listed: HashMap<String, ClientLimits>,
    /// Of all others.
    pub others: ClientLimits,
}

impl LimitTable {
    fn of(&self, name: &str) -> ClientLimits {
        self.listed.get(name).copied().unwrap_or(self.others)
    }
}

/// The identities that use one listener.
pub struct Clients {
    listener: &'static str,
    /// Keys of the largest request.
    largest: NonZeroU32,
    table: ArcSwap<LimitTable>,
    accounts: Mutex<HashMap<String, Arc<Account>>>,
    meter: LimitMeter,
    clock: SinceStart,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Clients {
    /// The identities of `listener`, whose largest request is for `largest` keys.
    pub fn new(listener: &'static str, table: LimitTable, largest: u32, meter: LimitMeter) -> Arc<Self> {
        meter.show(listener, &["requests_per_second", "keys_per_second", "connections"]);
        Arc::new(Self {
            listener,
            largest: NonZeroU32::new(largest).unwrap_or(NonZeroU32::MIN),
            table: ArcSwap::from_pointee(table),
            accounts: Mutex::default(),
            meter,
            clock: SinceStart(Instant::now()),
        })
    }

    /// The identities of a listener without limits.
    pub fn unlimited(listener: &'static str) -> Arc<Self> {
        Self::new(listener, LimitTable::default(), 1, LimitMeter::default())
    }

    /// Puts new limits into force, also for those who are connected.
    pub fn set_limits(&self, table: LimitTable) {
        let accounts = self.accounts.lock();
        self.table.store(Arc::new(table));
        let table = self.table.load();
        for (name, account) in accounts.iter() {
            let limits = table.of(name);
            if account.rates.load().limits != limits {
                account.rates.store(Arc::new(self.rates(limits)));
            }
        }
    }

    pub(super) fn listener(&self) -> &'static str {
        self.listener
    }

    /// Most connections of the identity `name`.
    pub(super) fn connections_max(&self, name: &str) -> usize {
        self.table.load().of(name).connections
    }

    /// Counts that the identity `name` has reached `limit`.
    pub(super) fn note(&self, name: &str, limit: &'static str) {
        self.meter.note(self.listener, name, self.table.load().listed.contains_key(name), limit);
    }

    /// What the identity `name` has left of its limits.
    pub(super) fn account(&self, name: &str) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(name) {
            return Arc::clone(account);
        }
        // Forgotten only when it makes no difference: nobody uses them, and nothing is missing.
        let now = self.clock.now();
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_full(now));
        let rates = self.rates(self.table.load().of(name));
        let every = Quota::with_period(WARN_EVERY).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let account = Arc::new(Account {
            name: name.to_owned(),
            rates: ArcSwap::from_pointee(rates),
            warnings: Bucket::direct_with_clock(every, self.clock),
            used_at_ms: AtomicU64::new(0),
        });
        accounts.insert(name.to_owned(), Arc::clone(&account));
        account
    }

    /// Takes one request.
    ///
    /// # Errors
    /// 503 with the time until the next is allowed.
    pub(super) fn take_request(&self, account: &Account) -> Result<(), ApiError> {
        let rates = account.rates.load();
        match &rates.requests {
            Some(bucket) => self.take(account, bucket, NonZeroU32::MIN, "requests"),
            None => Ok(()),
        }
    }

    /// Takes `number` keys. A number that no request may have passes: it is refused elsewhere.
    ///
    /// # Errors
    /// 503 with the time until that many are allowed.
    pub(super) fn take_keys(&self, account: &Account, number: usize) -> Result<(), ApiError> {
        let rates = account.rates.load();
        let Some(bucket) = &rates.keys else { return Ok(()) };
        let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
        match number.filter(|number| *number <= self.largest) {
            Some(number) => self.take(account, bucket, number, "keys"),
            None => Ok(()),
        }
    }

    fn take(
        &self,
        account: &Account,
        bucket: &Bucket,
        number: NonZeroU32,
        of_what: &'static str,
    ) -> Result<(), ApiError> {
        let now = self.clock.now();
        account.used_at_ms.store(millis(now), Ordering::Relaxed);
        let wait = match bucket.check_n(number) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(early)) => early.wait_time_from(now),
            // The bucket holds the largest request.
            Err(_) => Duration::from_secs(BURST_SECS.into()),
        };
        let (code, limit) = match of_what {
            "keys" => ("limit_keys", "keys_per_second"),
            _ => ("limit_requests", "requests_per_second"),
        };
        self.note(&account.name, limit);
        if account.warnings.check().is_ok() {
            tracing::warn!(
                listener = self.listener,
                caller = account.name,
                limit,
                "a client asks for more than its limit allows; requests over the limit are answered with 503"
            );
        }
        let secs = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        let message = format!("{} has reached its limit of {of_what} a second", account.name);
        Err(ApiError::unavailable(code, message, secs))
    }

    fn rates(&self, limits: ClientLimits) -> Rates {
        let bucket = |rate: NonZeroU32, least: NonZeroU32| {
            let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECS - 1)).max(least);
            let refill = Duration::from_secs(u64::from(burst.get().div_ceil(rate.get())));
            (Bucket::direct_with_clock(Quota::per_second(rate).allow_burst(burst), self.clock), refill)
        };
        let requests = limits.requests_per_second.map(|rate| bucket(rate, NonZeroU32::MIN));
        let keys = limits.keys_per_second.map(|rate| bucket(rate, self.largest));
        let refill = [&requests, &keys].into_iter().flatten().map(|(_, refill)| *refill).max();
        Rates {
            limits,
            requests: requests.map(|(bucket, _)| bucket),
            keys: keys.map(|(bucket, _)| bucket),
            refill: refill.unwrap_or_default(),
        }
    }
}

/// What one identity has left of its limits.
pub(super) struct Account {
    name: String,
    rates: ArcSwap<Rates>,
    warnings: Bucket,
    used_at_ms: AtomicU64,
}

impl Account {
    /// Whether its buckets are full again, at the latest.
    fn is_full(&self, now: Duration) -> bool {
        let idle_ms = millis(now).saturating_sub(self.used_at_ms.load(Ordering::Relaxed));
        Duration::from_millis(idle_ms) >= self.rates.load().refill
    }
}

struct Rates {
    limits: ClientLimits,
    requests: Option<Bucket>,
    keys: Option<Bucket>,
    /// How long the slowest bucket takes to fill.
    refill: Duration,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, SinceStart, NoOpMiddleware<Duration>>;

/// The time since the daemon started, from the clock that tests can pause.
#[derive(Clone, Copy, Debug)]
struct SinceStart(Instant);

impl RateClock for SinceStart {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
