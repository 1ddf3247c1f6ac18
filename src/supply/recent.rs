//! Batches that arrived lately, so that a repeated push spends no budget twice and two at once do not hinder each
//! other.
//!
//! Bounded in time and number. What happened to a batch is in the store, not here: a push may be repeated, or the
//! batch voided, through another replica.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use kme::{BatchId, KmeId};

/// How long a batch is remembered after it last arrived; sources give up long before.
const MEMORY: Duration = Duration::from_mins(2);
/// Most batches that are remembered.
const BATCHES_MAX: usize = 1 << 16;

/// What is known of one batch; the lock serialises the pushes of it.
pub(super) type Arrival = Arc<tokio::sync::Mutex<Progress>>;

/// How far a batch got in this daemon.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Its bits were taken from the budget of its pool set.
    pub(super) is_spent: bool,
}

struct Entry {
    content: [u8; 32],
    arrival: Arrival,
    until: Instant,
}

/// Why a batch is not taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The same name stands for other content.
    Conflict,
    /// Too many batches are remembered.
    Full,
}

#[derive(Default)]
pub(super) struct Recent {
    entries: Mutex<HashMap<(KmeId, BatchId), Entry>>,
}

impl Recent {
    /// Where to note the progress of a batch of `source` with `content`.
    pub(super) fn arrival(
        &self,
        source: &KmeId,
        batch: BatchId,
        content: [u8; 32],
    ) -> Result<Arrival, NotTaken> {
        let now = Instant::now();
        let mut entries = self.lock();
        if entries.len() >= BATCHES_MAX {
            entries.retain(|_, entry| now < entry.until);
        }
        let is_full = entries.len() >= BATCHES_MAX;
        match entries.entry((source.clone(), batch)) {
            std::collections::hash_map::Entry::Occupied(mut known) => {
                let entry = known.get_mut();
                if entry.content != content {
                    return Err(NotTaken::Conflict);
                }
                entry.until = now + MEMORY;
                Ok(Arc::clone(&entry.arrival))
            }
            std::collections::hash_map::Entry::Vacant(_) if is_full => Err(NotTaken::Full),
            std::collections::hash_map::Entry::Vacant(place) => {
                let arrival = Arrival::default();
                place.insert(Entry { content, arrival: Arc::clone(&arrival), until: now + MEMORY });
                Ok(arrival)
            }
        }
    }

    /// Forgets a batch that came to nothing, so that its name is free again.
    pub(super) fn forget(&self, source: &KmeId, batch: BatchId) {
        self.lock().remove(&(source.clone(), batch));
    }

    /// Forgets what is over; call it now and then.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, entry| now < entry.until);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(KmeId, BatchId), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_content_meets_its_progress_and_other_content_is_a_conflict() {
        let recent = Recent::default();
        let source: KmeId = "site-a".parse().unwrap();
        let batch = BatchId::draw(&OsRandom).unwrap();
        recent.arrival(&source, batch, [1; 32]).unwrap().lock().await.is_spent = true;
        assert!(recent.arrival(&source, batch, [1; 32]).unwrap().lock().await.is_spent);
        assert_eq!(recent.arrival(&source, batch, [2; 32]).unwrap_err(), NotTaken::Conflict);
        let other: KmeId = "site-c".parse().unwrap();
        assert!(!recent.arrival(&other, batch, [2; 32]).unwrap().lock().await.is_spent);
        tokio::time::advance(MEMORY).await;
        recent.sweep();
        assert!(!recent.arrival(&source, batch, [2; 32]).unwrap().lock().await.is_spent);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_recovers() {
        let recent = Recent::default();
        let source: KmeId = "site-a".parse().unwrap();
        for n in 0..BATCHES_MAX {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
            recent.arrival(&source, BatchId::from_bytes(bytes), [0; 32]).unwrap();
        }
        let one_more = BatchId::from_bytes([0xff; 16]);
        assert_eq!(recent.arrival(&source, one_more, [0; 32]).unwrap_err(), NotTaken::Full);
        tokio::time::advance(MEMORY).await;
        assert!(recent.arrival(&source, one_more, [0; 32]).is_ok());
    }
}
