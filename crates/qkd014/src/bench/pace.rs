//! When operations are due in an open loop, and when the clock runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Pause between two looks at what is due. A runtime's timer counts whole milliseconds.
const GRAIN: Duration = Duration::from_micros(200);

/// The time of one measurement. It begins when all workers are connected.
pub(super) struct Clock {
    start: OnceLock<Instant>,
    warmup: Duration,
    /// From the start.
    end_ns: AtomicU64,
}

impl Clock {
    pub(super) fn new(warmup: Duration, duration: Duration) -> Self {
        let end_ns = AtomicU64::new(nanos(warmup.saturating_add(duration)));
        Self { start: OnceLock::new(), warmup, end_ns }
    }

    /// The start. The first call starts the clock.
    pub(super) fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    /// When counting begins.
    pub(super) fn counting(&self) -> Instant {
        self.start() + self.warmup
    }

    /// When counting ends.
    pub(super) fn end(&self) -> Instant {
        self.start() + Duration::from_nanos(self.end_ns.load(Ordering::Relaxed))
    }

    /// Ends the measurement early.
    pub(super) fn end_at(&self, moment: Instant) {
        self.end_ns.fetch_min(nanos(moment.duration_since(self.start())), Ordering::Relaxed);
    }

    /// Whether an operation that ends at `moment` counts.
    pub(super) fn counts(&self, moment: Instant) -> bool {
        moment >= self.counting() && moment < self.end()
    }

    /// For how long operations are counted.
    pub(super) fn counted(&self) -> Duration {
        self.end().saturating_duration_since(self.counting())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Hands out the moments at which operations are due. A moment waits until a worker takes it, and its
/// operation's time starts at that moment. So a server that stalls cannot slow down the load that measures
/// it.
pub(super) struct Pacer {
    due: Mutex<VecDeque<Instant>>,
    count: Semaphore,
}

impl Pacer {
    /// Makes a pacer, and starts the thread that drives it.
    pub(super) fn start(clock: Arc<Clock>, rate: f64) -> Arc<Self> {
        let pacer = Arc::new(Self { due: Mutex::default(), count: Semaphore::new(0) });
        let own = Arc::clone(&pacer);
        std::thread::spawn(move || own.keep_going(&clock, rate));
        pacer
    }

    /// The next moment, once it has come; `None` when the time is over.
    pub(super) async fn next(&self) -> Option<Instant> {
        self.count.acquire().await.ok()?.forget();
        self.due.lock().pop_front()
    }

    fn keep_going(&self, clock: &Clock, rate: f64) {
        let start = clock.start();
        let mut number = 0_u32;
        loop {
            let now = Instant::now();
            if now >= clock.end() {
                return self.count.close();
            }
            let mut added = 0;
            let next = loop {
                let moment = start + Duration::from_secs_f64(f64::from(number) / rate);
                if moment > now {
                    break moment;
                }
                self.due.lock().push_back(moment);
                added += 1;
                number = number.saturating_add(1);
            };
            self.count.add_permits(added);
            std::thread::sleep((next - now).max(GRAIN).min(Duration::from_millis(100)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn moments_are_due_at_the_rate_and_wait_for_whoever_is_late() {
        let clock = Arc::new(Clock::new(Duration::ZERO, Duration::from_millis(200)));
        let start = clock.start();
        let pacer = Pacer::start(Arc::clone(&clock), 1000.0);
        // For half of the time nobody takes any.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut moments = Vec::new();
        while let Some(moment) = pacer.next().await {
            assert!(moment <= Instant::now(), "not before it has come");
            moments.push(moment);
        }
        for (number, moment) in (0_u32..).zip(&moments) {
            assert_eq!(*moment, start + Duration::from_secs_f64(f64::from(number) / 1000.0));
        }
        // The last ones may come too late, on a busy machine a few more.
        assert!((50..=200).contains(&moments.len()), "{}", moments.len());
    }

    #[test]
    fn a_clock_counts_after_the_warm_up_and_can_end_early() {
        let clock = Clock::new(Duration::from_secs(1), Duration::from_secs(10));
        let start = clock.start();
        let at = |secs: u64| start + Duration::from_secs(secs);
        assert!(!clock.counts(at(0)) && clock.counts(at(1)) && clock.counts(at(10)) && !clock.counts(at(11)));
        clock.end_at(at(5));
        clock.end_at(at(8));
        assert_eq!((clock.end(), clock.counted()), (at(5), Duration::from_secs(4)));
        clock.end_at(start);
        assert_eq!(clock.counted(), Duration::ZERO);
    }
}
