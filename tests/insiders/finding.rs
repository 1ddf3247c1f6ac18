//! What an attack showed, as a row of the table.

use std::time::Duration;

use crate::honest::Service;

/// How long an attack lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// As short as decides the matter: for tests.
    Short,
    /// For figures.
    Long,
}

impl Length {
    /// One of two values.
    pub(crate) fn pick<T>(self, short: T, long: T) -> T {
        if self == Self::Short { short } else { long }
    }

    /// How long honest applications are watched without an attack.
    pub(crate) fn quiet(self) -> Duration {
        self.pick(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// How long an attack goes on that would go on for ever.
    pub(crate) fn attack(self) -> Duration {
        self.pick(Duration::from_secs(5), Duration::from_secs(20))
    }
}

/// One attack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finding {
    /// What the attacker does.
    pub(crate) attack: &'static str,
    /// What came of it, in words.
    pub(crate) outcome: String,
    /// What honest applications got before the attack.
    pub(crate) quiet: Option<Service>,
    /// What they got during it.
    pub(crate) during: Option<Service>,
    /// Resident memory of the attacked daemon in MiB: before, and at its peak.
    pub(crate) memory_mib: Option<(u64, u64)>,
}

impl Finding {
    /// Everything but the attack, for one field of the table.
    pub(crate) fn cell(&self) -> String {
        let mut parts = vec![self.outcome.clone()];
        if let Some(during) = &self.during {
            let quiet = self.quiet.as_ref().map(|quiet| format!(" (undisturbed {quiet})"));
            parts.push(format!("others: {during}{}", quiet.unwrap_or_default()));
            let most = during.failures.iter().max_by_key(|(_, count)| **count);
            parts.extend(most.map(|(reason, count)| format!("{count} x {reason}")));
        }
        parts.extend(self.memory_mib.map(|(before, peak)| format!("{before} -> {peak} MiB")));
        parts.join("; ").replace('|', "/")
    }
}
