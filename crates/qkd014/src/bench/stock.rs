//! What must be ready before the clock runs: fetched keys for `dec_keys`, ready keys for `enc_keys`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::baseline;
use super::error::BenchError;
use super::setup::{End, Load};
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

/// Keys that A has fetched and B has not.
pub(super) struct Stock {
    keys: Vec<DeliveredKey>,
    next: AtomicUsize,
    /// Whether the same keys are handed out again and again.
    is_endless: bool,
}

impl Stock {
    /// Fetches `count` keys of `load`'s size.
    pub(super) async fn fetch(
        a: &Client,
        slave: &str,
        load: &Load,
        limits: Limits,
        count: u64,
    ) -> Result<Self, BenchError> {
        let each = u64::from(limits.max_per_request);
        let requests = (0..count.div_ceil(each)).map(|index| {
            let number = each.min(count - index * each);
            fetch_some(a, slave, u32::try_from(number).unwrap_or(u32::MAX), load.size_bits)
        });
        let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
        let mut keys = Vec::new();
        while let Some(fetched) = answers.next().await {
            keys.extend(fetched?);
        }
        Ok(Self { keys, next: AtomicUsize::new(0), is_endless: false })
    }

    /// An endless stock of IDs for the baseline, which answers everything.
    pub(super) fn of_baseline(number: u32) -> Result<Self, BenchError> {
        let container: KeyContainer = serde_json::from_slice(&baseline::body(number, 1))
            .map_err(|error| BenchError(format!("the baseline's keys: {error}")))?;
        Ok(Self { keys: container.keys, next: AtomicUsize::new(0), is_endless: true })
    }

    /// IDs of the next `number` keys; `None` when there are fewer.
    pub(super) fn take(&self, number: u32) -> Option<impl ExactSizeIterator<Item = &str>> {
        let number = usize::try_from(number).ok()?;
        let start = if self.is_endless { 0 } else { self.next.fetch_add(number, Ordering::Relaxed) };
        let keys = self.keys.get(start..start.checked_add(number)?)?;
        Some(keys.iter().map(|key| key.id.as_str()))
    }

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
