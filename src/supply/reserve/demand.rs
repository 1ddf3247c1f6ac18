//! How many keys a pair should have ready. Follows the pair's use: up at once, down slowly. Does no I/O.

use std::time::Duration;

use tokio::time::Instant;

/// How long the reserve should last at the present rate when no keys can be made.
const HORIZON_SECS: f64 = 90.0;
/// One measurement of the rate.
const WINDOW: Duration = Duration::from_secs(1);
/// Weight of the newest window in the mean rate.
const WEIGHT: f64 = 0.25;
/// The remembered rate halves in this time without demand.
const HALF_LIFE: Duration = Duration::from_mins(5);
/// A pair that was not asked for during this time needs no reserve.
const IDLE: Duration = Duration::from_hours(1);

/// How large a pair's reserve may be, and in what amounts it is filled. All in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supply) struct Bounds {
    /// Fewest keys for a pair that is in use. 0: no pair has a reserve.
    pub(in crate::supply) floor: u64,
    /// Never more than this.
    pub(in crate::supply) max: u64,
    /// Keys of one batch.
    pub(in crate::supply) block: u64,
    /// Most keys that are made, pushed and stored together.
    pub(in crate::supply) delivery: u64,
}

/// How fast a pair has used keys recently.
#[derive(Debug)]
pub(super) struct Demand {
    window_start: Instant,
    in_window: u64,
    mean: f64,
    peak: f64,
    last: Instant,
}

impl Demand {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_start: now, in_window: 0, mean: 0.0, peak: 0.0, last: now }
    }

    /// Notes that `keys` were asked for.
    pub(super) fn note(&mut self, keys: u64, now: Instant) {
        self.roll(now);
        self.in_window = self.in_window.saturating_add(keys);
        self.last = now;
    }

    /// The remembered rate: keys per second.
    pub(super) fn rate(&mut self, now: Instant) -> f64 {
        self.roll(now);
        self.peak
    }

    /// How many keys should be ready.
    pub(super) fn target(&mut self, bounds: Bounds, now: Instant) -> u64 {
        if bounds.floor == 0 || now.duration_since(self.last) >= IDLE {
            return 0;
        }
        let wanted = whole(self.rate(now) * HORIZON_SECS);
        wanted.max(bounds.floor).min(bounds.max)
    }

    /// Whether nobody has asked for so long that the pair can be forgotten.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= IDLE
    }

    /// Closes the windows that are over.
    fn roll(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.window_start);
        if elapsed < WINDOW {
            return;
        }
        let secs = elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let newest = self.in_window as f64 / secs;
        // One update over a long idle time weighs as much as many short ones.
        let old = (1.0 - WEIGHT).powf(secs);
        self.mean = self.mean * old + newest * (1.0 - old);
        self.peak = (self.peak * 0.5_f64.powf(secs / HALF_LIFE.as_secs_f64())).max(self.mean);
        self.window_start = now;
        self.in_window = 0;
    }
}

/// The whole part of a rate, within the range of the type.
fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded, never negative")]
    let whole = value.clamp(0.0, 1e15) as u64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { floor: 64, max: 4096, block: 64, delivery: 256 };

    fn used(rate: u64, secs: u64) -> (Demand, Instant) {
        let mut now = Instant::now();
        let mut demand = Demand::new(now);
        for _ in 0..secs {
            now += WINDOW;
            demand.note(rate, now);
        }
        (demand, now)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_in_use_has_the_floor_and_a_busy_one_a_minute_and_a_half_up_to_the_maximum() {
        let (mut demand, now) = used(0, 1);
        assert_eq!(demand.target(BOUNDS, now), 64);
        let (mut demand, now) = used(10, 60);
        let target = demand.target(BOUNDS, now);
        assert!((800..=1000).contains(&target), "{target}");
        let (mut demand, now) = used(50, 30);
        assert_eq!(demand.target(BOUNDS, now), 4096);
    }

    #[tokio::test(start_paused = true)]
    async fn the_target_falls_slowly_and_ends_at_nothing_for_an_idle_pair() {
        let (mut demand, now) = used(40, 60);
        let busy = demand.target(BOUNDS, now);
        let later = demand.target(BOUNDS, now + HALF_LIFE);
        assert!(later < busy && later > busy / 4, "{busy} then {later}");
        assert_eq!(demand.target(BOUNDS, now + Duration::from_mins(55)), 64);
        assert_eq!(demand.target(BOUNDS, now + IDLE), 0);
        assert!(demand.is_idle(now + IDLE));
    }

    #[tokio::test(start_paused = true)]
    async fn the_maximum_bounds_the_floor() {
        let (mut demand, now) = used(0, 1);
        assert_eq!(demand.target(Bounds { max: 10, ..BOUNDS }, now), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_of_nothing_keeps_nothing() {
        let (mut demand, now) = used(50, 30);
        assert_eq!(demand.target(Bounds { floor: 0, ..BOUNDS }, now), 0);
    }
}
