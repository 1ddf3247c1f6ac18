//! Whose pool is made next.
//!
//! Filling a pool keeps a processor busy, so a few workers do it. A KME has one place in the queue for them at
//! a time, however many pools it asks for: others wait for one pool of it, not for all. A token bucket bounds
//! what each asks for in the long run.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use kme::KmeId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::http::error::ApiError;

/// Longest time that a request waits for a worker.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Pools that are filled at once.
const WORKERS: usize = 2;
/// After this time without a request, a bucket is full.
const REFILL: Duration = Duration::from_mins(1);
/// `Retry-After` when no worker became free in time.
const RETRY_AFTER_SECS: u32 = 5;

/// The queue for the workers.
pub(super) struct Creations {
    workers: Arc<Semaphore>,
    per_minute: NonZeroU32,
    owners: Mutex<HashMap<KmeId, Arc<Owner>>>,
}

/// What one KME may use.
struct Owner {
    turn: Arc<Semaphore>,
    bucket: DefaultDirectRateLimiter,
    used_at: Mutex<Instant>,
}

impl Owner {
    fn is_idle(&self) -> bool {
        self.used_at.lock().elapsed() >= REFILL
    }
}

/// The right to fill one pool.
pub(super) struct Turn {
    _worker: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Creations {
    /// Each KME may make `per_minute` pools in a minute, and as many at once after a pause.
    pub(super) fn new(per_minute: NonZeroU32) -> Arc<Self> {
        let workers = Arc::new(Semaphore::new(WORKERS));
        Arc::new(Self { workers, per_minute, owners: Mutex::default() })
    }

    /// Waits for the turn of `kme`.
    ///
    /// # Errors
    /// 503 if it makes too many pools, or no worker becomes free in time.
    pub(super) async fn turn(&self, kme: &KmeId) -> Result<Turn, ApiError> {
        let owner = self.owner(kme);
        if let Err(early) = owner.bucket.check() {
            let wait = early.wait_time_from(DefaultClock::default().now());
            let secs = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
            let text =
                format!("KME {kme} has made {} pools within a minute, its limit here", self.per_minute);
            return Err(ApiError::unavailable("pool_creations", text, secs));
        }
        let waiting = async {
            let own = Arc::clone(&owner.turn).acquire_owned().await.ok()?;
            let worker = Arc::clone(&self.workers).acquire_owned().await.ok()?;
            Some(Turn { _worker: worker, _own: own })
        };
        timeout(WAIT_MAX, waiting).await.ok().flatten().ok_or_else(|| {
            ApiError::unavailable("pool_fill_busy", "other pools are being made", RETRY_AFTER_SECS)
        })
    }

    fn owner(&self, kme: &KmeId) -> Arc<Owner> {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get(kme) {
            *owner.used_at.lock() = Instant::now();
            return Arc::clone(owner);
        }
        // Forgotten only when it makes no difference: nobody waits, and the bucket is full.
        owners.retain(|_, owner| Arc::strong_count(owner) > 1 || !owner.is_idle());
        let owner = Arc::new(Owner {
            turn: Arc::new(Semaphore::new(1)),
            bucket: RateLimiter::direct(Quota::per_minute(self.per_minute)),
            used_at: Mutex::new(Instant::now()),
        });
        owners.insert(kme.clone(), Arc::clone(&owner));
        owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kme(name: &str) -> KmeId {
        name.parse().unwrap()
    }

    const MANY: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

    #[tokio::test]
    async fn whoever_asks_for_a_thousand_pools_delays_another_by_one_at_most() {
        let creations = Creations::new(MANY);
        // Both workers are busy, as with two KMEs that make large pools.
        let (first, second) =
            (creations.turn(&kme("x")).await.unwrap(), creations.turn(&kme("y")).await.unwrap());
        let mut greedy = Vec::new();
        for _ in 0..1_000 {
            let queue = Arc::clone(&creations);
            greedy.push(tokio::spawn(async move {
                let _turn = queue.turn(&kme("mallory")).await;
                // Each of its pools takes until the test ends.
                std::future::pending::<()>().await;
            }));
        }
        tokio::task::yield_now().await;
        let queue = Arc::clone(&creations);
        let honest = tokio::spawn(async move { queue.turn(&kme("alice")).await.is_ok() });
        tokio::task::yield_now().await;
        drop((first, second));
        assert!(honest.await.unwrap(), "one worker is mallory's, the other is free for alice");
        greedy.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_kme_over_its_rate_is_told_when_to_come_back_and_others_are_served() {
        let creations = Creations::new(NonZeroU32::new(3).unwrap());
        for _ in 0..3 {
            assert!(creations.turn(&kme("site-a")).await.is_ok());
        }
        let refused = creations.turn(&kme("site-a")).await.err().unwrap();
        assert_eq!(refused.code, "pool_creations");
        assert!(refused.retry_after_secs.unwrap() <= 20, "{refused:?}");
        assert!(creations.turn(&kme("site-b")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_uses_are_forgotten() {
        let creations = Creations::new(MANY);
        for number in 0..100 {
            creations.turn(&kme(&format!("site-{number}"))).await.ok().unwrap();
        }
        tokio::time::advance(REFILL).await;
        creations.turn(&kme("site-new")).await.ok().unwrap();
        assert_eq!(creations.owners.lock().len(), 1);
    }
}
