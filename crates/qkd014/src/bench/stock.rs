//! What must be ready before the clock runs: fetched keys for `dec_keys`, ready keys for `enc_keys`.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::baseline;
use super::error::BenchError;
use super::setup::{End, Load, Order};
use crate::client::{Client, ClientError};
use crate::wire::{DeliveredKey, KeyContainer, KeyRequest};

/// Requests at once.
const AT_ONCE: usize = 8;
/// Longest wait for one more key.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Assumed key size if a KME does not tell it.
const USUAL_KEY_BITS: u32 = 256;

/// Limits of the first KME, by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) key_bits: u32,
    pub(super) max_per_request: u32,
}

/// A client that fetches keys outside the measured time.
pub(super) fn client(end: &End) -> Result<Client, BenchError> {
    Client::of(end.url.clone(), end.credentials.clone()).map_err(|error| BenchError(error.to_string()))
}

/// Asks A. If the answer is not as in the standard, assumes one key of 256 bits for each request.
pub(super) async fn limits(a: &Client, slave: &str) -> Result<Limits, BenchError> {
    match a.status(slave).await {
        Ok(status) => Ok(Limits {
            key_bits: status.key_size,
            max_per_request: u32::try_from(status.max_key_per_request).unwrap_or(u32::MAX).max(1),
        }),
        Err(ClientError::NotEtsi014(_)) => Ok(Limits { key_bits: USUAL_KEY_BITS, max_per_request: 1 }),
        Err(error) => Err(BenchError(format!("status of the first KME: {error}"))),
    }
}

/// The first KME's count of ready keys.
pub(super) async fn ready(a: &Client, slave: &str) -> Option<u64> {
    a.status(slave).await.ok().map(|status| status.stored_key_count)
}

/// Waits until A has `wanted` ready keys.
pub(super) async fn wait_until_ready(a: &Client, slave: &str, wanted: u64) -> Result<(), BenchError> {
    let (mut most, mut grew_at) = (0, Instant::now());
    loop {
        let now = ready(a, slave).await.unwrap_or_default();
        if now >= wanted {
            return Ok(());
        }
        if now > most {
            (most, grew_at) = (now, Instant::now());
        }
        if grew_at.elapsed() > PATIENCE {
            let text = format!(
                "the first KME has {now} ready keys, and no more for {} s; --stock waits for {wanted}. \
                 For dqkd see keys.min_stored_per_pair and keys.max_stored_per_pair",
                PATIENCE.as_secs()
            );
            return Err(BenchError(text));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Keys that A has fetched and B has not: what `dec` knows.
#[derive(Default)]
pub(super) struct Stock {
    keys: Vec<DeliveredKey>,
    /// How many were taken, from the end.
    taken: AtomicUsize,
    /// Whether the same keys are handed out again and again.
    is_endless: bool,
}

impl Stock {
    /// Fetches keys of `load`'s size until there are `count`, and puts all in the order in which `load` takes
    /// them.
    pub(super) async fn fill(
        &mut self,
        a: &Client,
        slave: &str,
        load: &Load,
        limits: Limits,
        count: u64,
    ) -> Result<(), BenchError> {
        self.forget_taken();
        let count = count.saturating_sub(self.known());
        let each = u64::from(limits.max_per_request);
        let requests = (0..count.div_ceil(each)).map(|index| {
            let number = each.min(count - index * each);
            fetch_some(a, slave, u32::try_from(number).unwrap_or(u32::MAX), load.size_bits)
        });
        let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
        while let Some(fetched) = answers.next().await {
            self.keys.extend(fetched?);
        }
        if load.order == Order::Random {
            self.shuffle();
        }
        Ok(())
    }

    /// Every order is as likely as any other: that of hashes under a key drawn now.
    fn shuffle(&mut self) {
        let hashes = RandomState::new();
        self.keys.sort_by_cached_key(|key| hashes.hash_one(&key.id));
    }

    /// Keys that were not taken.
    pub(super) fn known(&self) -> u64 {
        self.keys.len().saturating_sub(self.taken.load(Ordering::Relaxed)) as u64
    }

    fn forget_taken(&mut self) {
        let taken = std::mem::take(self.taken.get_mut());
        self.keys.truncate(self.keys.len().saturating_sub(taken));
    }

    /// An endless stock of IDs for the baseline, which answers everything.
    pub(super) fn of_baseline(number: u32) -> Result<Self, BenchError> {
        let container: KeyContainer = serde_json::from_slice(&baseline::body(number, 1))
            .map_err(|error| BenchError(format!("the baseline's keys: {error}")))?;
        Ok(Self { keys: container.keys, is_endless: true, ..Self::default() })
    }

    /// IDs of the last `number` keys that were not taken; `None` when there are fewer.
    pub(super) fn take(&self, number: u32) -> Option<impl ExactSizeIterator<Item = &str>> {
        let number = usize::try_from(number).ok()?;
        let more = |taken: usize| taken.checked_add(number).filter(|more| *more <= self.keys.len());
        let taken = if self.is_endless {
            0
        } else {
            self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?
        };
        let end = self.keys.len().checked_sub(taken)?;
        let keys = self.keys.get(end.checked_sub(number)?..end)?;
        Some(keys.iter().map(|key| key.id.as_str()))
    }

    /// All, also those that were taken.
    pub(super) fn keys(&self) -> &[DeliveredKey] {
        &self.keys
    }
}

/// One request, repeated for a while if the KME answers 503.
async fn fetch_some(
    a: &Client,
    slave: &str,
    number: u32,
    size: Option<u32>,
) -> Result<Vec<DeliveredKey>, BenchError> {
    let request = KeyRequest { number: Some(number), size, ..KeyRequest::default() };
    let until = Instant::now() + PATIENCE;
    loop {
        match a.enc_keys(slave, &request).await {
            Ok(container) => return Ok(container.keys),
            Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. })
                if Instant::now() < until =>
            {
                sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(BenchError(format!("keys to begin with: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(count: u32) -> Stock {
        let entries: Vec<String> =
            (0..count).map(|number| format!(r#"{{"key_ID":"{number}","key":"AA=="}}"#)).collect();
        let text = format!(r#"{{"keys":[{}]}}"#, entries.join(","));
        let container: KeyContainer = serde_json::from_str(&text).unwrap();
        Stock { keys: container.keys, ..Stock::default() }
    }

    fn take_all(stock: &Stock, each: u32) -> Vec<u32> {
        std::iter::from_fn(|| Some(stock.take(each)?.map(|id| id.parse().unwrap()).collect::<Vec<u32>>()))
            .flatten()
            .collect()
    }

    #[test]
    fn the_newest_are_taken_first_and_a_rest_that_is_too_small_stays() {
        let mut keys = stock(7);
        assert_eq!(take_all(&keys, 3), [4, 5, 6, 1, 2, 3]);
        assert!(keys.take(3).is_none());
        assert_eq!(keys.known(), 1);
        keys.forget_taken();
        assert_eq!(take_all(&keys, 1), [0]);
    }

    #[test]
    fn what_a_round_does_not_take_is_known_to_the_next_and_never_taken_twice() {
        let mut keys = stock(10);
        let first: Vec<String> = keys.take(4).unwrap().map(str::to_owned).collect();
        assert_eq!(keys.known(), 6);
        keys.forget_taken();
        keys.shuffle();
        assert_eq!(keys.known(), 6);
        let rest = take_all(&keys, 1);
        assert_eq!(rest.len(), 6);
        assert!(rest.iter().all(|id| !first.contains(&id.to_string())));
    }

    #[test]
    fn random_order_takes_each_once_from_everywhere() {
        let mut keys = stock(1000);
        keys.shuffle();
        let taken = take_all(&keys, 1);
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        // The first half comes from all parts. Of each tenth, 50 are expected; fewer than 15 do not happen.
        for part in 0..10 {
            let of_part = taken.iter().take(500).filter(|id| **id / 100 == part).count();
            assert!((15..=85).contains(&of_part), "{of_part} of the first half are from part {part}");
        }
        keys = stock(1000);
        keys.shuffle();
        assert_ne!(take_all(&keys, 1), taken, "another order each time");
    }
}
