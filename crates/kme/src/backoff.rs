//! How long to wait after failures.

use std::time::Duration;

use crate::Random;

/// A pause that doubles with each failure in a row, up to a maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Starts at `first` and ends at `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after `failures` failures in a row; none after no failure.
    pub fn after(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Half of [`Self::after`] plus a random part of the other half, so that callers that failed together do
    /// not all return together. If the generator fails, there is no random part.
    pub fn jittered(&self, failures: u32, random: &dyn Random) -> Duration {
        let half = self.after(failures) / 2;
        let mut byte = [0];
        let part = random.fill(&mut byte).map_or(0.0, |()| f64::from(byte[0]) / 255.0);
        half + half.mul_f64(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OsRandom;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

    #[test]
    fn the_pause_doubles_up_to_the_longest() {
        let all: Vec<u128> = (0..6).map(|failures| BACKOFF.after(failures).as_millis()).collect();
        assert_eq!(all, [0, 250, 500, 1000, 2000, 2000]);
        for many in [31, 32, 33, u32::MAX] {
            assert_eq!(BACKOFF.after(many), Duration::from_secs(2), "{many}");
        }
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        for failures in 0..40 {
            let (whole, jittered) = (BACKOFF.after(failures), BACKOFF.jittered(failures, &OsRandom));
            assert!(jittered >= whole / 2 && jittered <= whole, "{failures}: {jittered:?}");
        }
    }
}
