//! Bounded memory: bytes are reserved before they are allocated, and released when the reservation is
//! dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of bytes that may be in use at once.
#[derive(Debug)]
pub struct Quota {
    max_bytes: u64,
    used_bytes: AtomicU64,
}

impl Quota {
    /// A quota of `max_bytes`, none of it in use.
    pub fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { max_bytes, used_bytes: AtomicU64::new(0) })
    }

    /// Takes `bytes` out of the quota until the reservation is dropped; `None` when they do not fit.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.used_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.max_bytes)
            })
            .ok()
            .map(|_| Reservation { quota: Arc::clone(self), bytes })
    }

    /// Bytes in use now.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }
}

/// Bytes taken out of a [`Quota`]; released when dropped.
#[derive(Debug)]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_quota_and_come_back_when_dropped() {
        let quota = Quota::new(100);
        let first = quota.reserve(60).unwrap();
        assert!(quota.reserve(41).is_none());
        assert!(quota.reserve(u64::MAX).is_none());
        let second = quota.reserve(40).unwrap();
        assert_eq!(quota.used_bytes(), 100);
        drop(first);
        assert_eq!(quota.used_bytes(), 40);
        drop(second);
        assert!(quota.reserve(100).is_some());
    }
}
