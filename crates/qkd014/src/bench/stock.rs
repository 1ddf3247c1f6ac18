//! What has to be there before the clock runs: keys for `dec_keys`, ready keys for `enc_keys`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::setup::{End, Load};
use super::{BenchError, hello};
use crate::client::{ClientError, DeliveredKey, EncRequest, Etsi014Client, KeyContainer};

/// Requests at once.
const AT_ONCE: usize = 8;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest without a new key until one gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of a KME that does not tell its own.
const USUAL_KEY_BITS: u32 = 256;

/// What the first KME says about what can be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) key_bits: u32,
    pub(super) max_per_request: u32,
}

/// A client that fetches keys outside the measured time.
pub(super) fn client(end: &End) -> Result<Etsi014Client, BenchError> {
    Etsi014Client::new(&end.url, end.tls.clone(), CALL_TIMEOUT).map_err(|error| BenchError(error.to_string()))
}

/// Asks A; a KME whose status is not of the standard is taken to deliver one usual key a request.
pub(super) async fn limits(a: &Etsi014Client, slave: &str) -> Result<Limits, BenchError> {
    match a.status(slave).await {
        Ok(status) => Ok(Limits {
            key_bits: status.key_size,
            max_per_request: u32::try_from(status.max_key_per_request).unwrap_or(u32::MAX).max(1),
        }),
        Err(ClientError::Garbled(_)) => Ok(Limits { key_bits: USUAL_KEY_BITS, max_per_request: 1 }),
        Err(error) => Err(BenchError(format!("status of the first KME: {error}"))),
    }
}

/// Ready keys, as the first KME counts them.
pub(super) async fn ready(a: &Etsi014Client, slave: &str) -> Option<u64> {
    a.status(slave).await.ok().map(|status| status.stored_key_count)
}

/// Waits until A has `wanted` ready keys.
pub(super) async fn wait_until_ready(a: &Etsi014Client, slave: &str, wanted: u64) -> Result<(), BenchError> {
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
                "{wanted} ready keys were waited for, and there are {now}; \
                 keys.min_stored_per_pair and keys.max_stored_per_pair of the first KME bound them"
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
    /// Whether the same come again and again.
    is_endless: bool,
}

impl Stock {
    /// Fetches `count` keys of `load`'s size.
    pub(super) async fn fetch(
        a: &Etsi014Client,
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

    /// What can be asked of the yardstick, which answers anything, for ever.
    pub(super) fn of_yardstick(number: u32) -> Result<Self, BenchError> {
        let container: KeyContainer = serde_json::from_slice(&hello::body(number, 1))
            .map_err(|error| BenchError(format!("the yardstick's keys: {error}")))?;
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

/// One request, repeated for a while as long as the KME says that it may be.
async fn fetch_some(
    a: &Etsi014Client,
    slave: &str,
    number: u32,
    size: Option<u32>,
) -> Result<Vec<DeliveredKey>, BenchError> {
    let request = EncRequest { number: Some(number), size, ..EncRequest::default() };
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
