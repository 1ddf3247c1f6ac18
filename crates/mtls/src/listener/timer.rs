//! The timer of one HTTP/1 connection.
//!
//! hyper starts a timeout for the head of each request and drops it when the head has arrived. So a busy
//! connection would enter and leave the runtime's timers, which all connections share, with every request.
//! This timer keeps the dropped timeout for the next request. If it fires too early, it is set to the new
//! deadline then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;

type Ring = Pin<Box<tokio::time::Sleep>>;

/// Clones belong to the same connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionTimer {
    spare: Arc<Mutex<Option<Ring>>>,
}

impl ConnectionTimer {
    fn limit(&self, at: tokio::time::Instant) -> Limit {
        let spare = self.spare.lock().take();
        let ring = match spare {
            Some(mut ring) if ring.deadline() > at => {
                ring.as_mut().reset(at);
                ring
            }
            Some(ring) => ring,
            None => Box::pin(tokio::time::sleep_until(at)),
        };
        Limit { at, ring: Some(ring), spare: Arc::clone(&self.spare) }
    }
}

impl Timer for ConnectionTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(self.limit(tokio::time::Instant::now() + duration))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(self.limit(deadline.into()))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

/// One timeout, which ends at `at`. Its `ring` fires then or earlier.
struct Limit {
    at: tokio::time::Instant,
    /// `None` only during the drop.
    ring: Option<Ring>,
    spare: Arc<Mutex<Option<Ring>>>,
}

impl Sleep for Limit {}

impl Future for Limit {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let Some(ring) = &mut self.ring else { return Poll::Ready(()) };
        loop {
            ready!(ring.as_mut().poll(context));
            if ring.deadline() >= at {
                return Poll::Ready(());
            }
            ring.as_mut().reset(at);
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        *self.spare.lock() = self.ring.take();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(1);
    const JUST_BEFORE: Duration = Duration::from_millis(9_999);

    #[tokio::test(start_paused = true)]
    async fn each_limit_ends_at_its_own_moment_however_many_were_dropped_before() {
        let timer = ConnectionTimer::default();
        for _ in 0..3 {
            let mut dropped = timer.sleep(LIMIT);
            assert!(timeout(LIMIT / 2, &mut dropped).await.is_err(), "not yet");
            drop(dropped);
            let mut limit = timer.sleep_until(timer.now() + LIMIT);
            assert!(timeout(JUST_BEFORE, &mut limit).await.is_err(), "not yet");
            timeout(2 * MOMENT, &mut limit).await.unwrap();
            drop(limit);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_than_the_one_before_is_kept_too() {
        let timer = ConnectionTimer::default();
        drop(timer.sleep(LIMIT));
        timeout(LIMIT / 5, timer.sleep(LIMIT / 10)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn limits_at_once_do_not_disturb_each_other() {
        let timer = ConnectionTimer::default();
        let (mut long, short) = (timer.sleep(LIMIT), timer.sleep(LIMIT / 2));
        timeout(LIMIT / 2 + MOMENT, short).await.unwrap();
        assert!(timeout(LIMIT / 4, &mut long).await.is_err(), "not yet");
        advance(LIMIT / 4).await;
        timeout(MOMENT, long).await.unwrap();
    }
}
