//! The task that keeps reserves filled. It visits the pairs in turn, one batch for each, and makes a few
//! batches at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::interval;

use super::pair::{Begun, Pair};
use super::{Purpose, Reserve};
use crate::supply::SupplyError;

/// Deliveries for reserves in work at once, of all pairs together.
const AT_ONCE: usize = 4;
/// How long a stop waits at most for a batch that no caller waits for.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How often the task looks at all pairs, whatever notifies it.
const TICK: Duration = Duration::from_millis(250);
/// How often the task looks for pairs that nobody uses any more.
const TIDY_EVERY: Duration = Duration::from_secs(10);

impl Reserve {
    /// Refills until the runtime ends.
    pub(in crate::supply) async fn keep_filled(self: Arc<Self>) {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let (mut tick, mut tidy) = (interval(TICK), interval(TIDY_EVERY));
        let mut next = 0;
        loop {
            self.start_refills(&room, &mut next).await;
            tokio::select! {
                () = self.wanted.notified() => {}
                _ = tidy.tick() => self.tidy().await,
                _ = tick.tick() => self.count_leased(&self.pairs.all()),
            }
        }
    }

    /// Starts as many batches as there is room for, beginning with the pair after the last one served.
    async fn start_refills(self: &Arc<Self>, room: &Arc<Semaphore>, next: &mut usize) {
        if room.available_permits() == 0 {
            return;
        }
        let pairs = self.pairs.all();
        let mut idle_in_a_row = 0;
        while idle_in_a_row < pairs.len() {
            // A batch that ends notifies this task.
            let Ok(permit) = Arc::clone(room).try_acquire_owned() else { return };
            *next = (*next + 1) % pairs.len();
            let Some(pair) = pairs.get(*next) else { return };
            if self.start_refill(pair, permit).await {
                idle_in_a_row = 0;
            } else {
                idle_in_a_row += 1;
            }
        }
    }

    async fn start_refill(self: &Arc<Self>, pair: &Arc<Pair>, permit: OwnedSemaphorePermit) -> bool {
        if !self.parts.maker.is_reachable(&pair.recipient) {
            return false;
        }
        if pair.should_count(self.parts.store.is_shared()) {
            self.count_now(pair).await;
        }
        let bounds = self.settings.bounds;
        let (has_room, is_shared) = (self.has_room(), self.parts.store.is_shared());
        let begun = pair.begin_refill(bounds, has_room, is_shared, self.parts.maker.now());
        let Some(begun) = begun else { return false };
        let (reserve, pair) = (Arc::clone(self), Arc::clone(pair));
        // In its own task, for which a stop waits a moment. A batch that is cut off then leaves twins at the
        // peers, whose IDs nobody knows.
        self.parts.tasks.spawn(async move {
            reserve.refill(&pair, begun).await;
            drop(permit);
            reserve.wanted.notify_one();
        });
        true
    }

    /// Makes the keys that were begun, less what other replicas have made meanwhile.
    async fn refill(&self, pair: &Pair, mut begun: Begun) {
        // Replicas may refill the pair at the same time. The count shows what they have stored, not what they
        // are making, so a full reserve may get a surplus: at most the batches that the replicas were making
        // at that moment.
        if self.parts.store.is_shared() {
            self.count_now(pair).await;
            pair.still_missing(&mut begun, self.settings.bounds, self.parts.maker.now());
        }
        let (keys, purpose) = (begun.keys(), begun.purpose);
        if keys == 0 {
            return;
        }
        let maker = Arc::clone(&self.parts.maker);
        let make = maker.make(&pair.master, &pair.recipient, keys, purpose);
        let stop = async {
            self.parts.stopping.cancelled().await;
            tokio::time::sleep(STOP_WAIT).await;
        };
        let made = tokio::select! {
            made = make => made,
            () = stop => Err(SupplyError::Busy),
        };
        if let Err(error) = &made {
            tracing::debug!(
                sae = %pair.master, peer = %pair.recipient.kme,
                error = error as &dyn std::error::Error, "a reserve could not be refilled"
            );
        }
        if purpose != Purpose::Ready && made.is_ok() {
            self.leased.fetch_add(keys as u64, Ordering::Relaxed);
        }
        pair.end_refill(begun, made);
        self.give_back_if_closed(pair).await;
    }

    /// Counts the keys in memory, gives back what waited too long, and forgets pairs that nobody uses. In its
    /// own task: if this one ends meanwhile, the leased keys must not be lost.
    pub(super) async fn tidy(self: &Arc<Self>) {
        let pairs = self.pairs.all();
        self.count_leased(&pairs);
        let reserve = Arc::clone(self);
        let work = async move {
            for pair in pairs {
                if pair.is_idle() {
                    let _moving = pair.moving.lock().await;
                    if reserve.pairs.remove_idle(&pair) {
                        reserve.give_back(&pair, pair.empty()).await;
                    }
                } else if pair.has_overdue(reserve.parts.maker.now()) {
                    let _moving = pair.moving.lock().await;
                    reserve.give_back_overdue(&pair).await;
                }
            }
        };
        let _ = self.parts.tasks.spawn(work).await;
    }
}
