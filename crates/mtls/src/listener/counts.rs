//! What a listener counts, for operators.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Why a client got no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its handshake broke, or was none.
    Handshake,
    /// Its certificate is not of the chain, or is expired or revoked.
    Certificate,
    /// Its certificate names nobody, or somebody who has no business at this listener.
    Identity,
    /// Its handshake took too long.
    Slow,
    /// There were too many unfinished handshakes, and its own was the oldest.
    Displaced,
    /// It has as many connections as it may have.
    Share,
    /// This daemon's certificates cannot be used.
    Own,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Handshake,
        Self::Certificate,
        Self::Identity,
        Self::Slow,
        Self::Displaced,
        Self::Share,
        Self::Own,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::Identity => "identity",
            Self::Slow => "slow_handshake",
            Self::Displaced => "displaced",
            Self::Share => "share",
            Self::Own => "own_certificate",
        }
    }
}

/// Why a connection was closed without waiting for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its certificate was revoked or has expired, or its CA is not trusted any more.
    Certificate,
    /// It was asked to end, and did not.
    Old,
    /// It read nothing for too long while answers waited.
    Unread,
    /// It read an answer too slowly.
    SlowReader,
    /// Unread answers took too much memory in all, and those of this client the most.
    Memory,
    /// The listener stopped, and a request took longer than the grace period.
    Stop,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Certificate, Self::Old, Self::Unread, Self::SlowReader, Self::Memory, Self::Stop];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Old => "old",
            Self::Unread => "unread",
            Self::SlowReader => "slow_reader",
            Self::Memory => "memory",
            Self::Stop => "stop",
        }
    }

    /// What the log says.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Certificate => "its certificate is not accepted any more",
            Self::Old => "its client was asked to end it, and did not",
            Self::Unread => "its client read nothing while answers waited",
            Self::SlowReader => "its client read an answer too slowly",
            Self::Memory => "unread answers took too much memory, most of it for this client",
            Self::Stop => "a request took longer than the grace period of the stop",
        }
    }
}

/// The counters of one listener.
#[derive(Debug, Default)]
pub struct ListenerCounts {
    pub(super) open: AtomicUsize,
    pub(super) handshakes: AtomicUsize,
    pub(super) unsent_bytes: AtomicUsize,
    refused: [AtomicU64; Refusal::ALL.len()],
    cut: [AtomicU64; Cut::ALL.len()],
}

impl ListenerCounts {
    /// Connections that serve requests now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Unfinished handshakes now.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Bytes of answers that clients have not read now.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    /// Clients that got no connection for this reason.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Connections that were cut for this reason.
    pub fn cut(&self, reason: Cut) -> u64 {
        self.cut.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(super) fn count_refused(&self, reason: Refusal) {
        if let Some(count) = self.refused.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_cut(&self, reason: Cut) {
        if let Some(count) = self.cut.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let counts = ListenerCounts::default();
        for reason in Refusal::ALL {
            counts.count_refused(reason);
            assert_eq!(counts.refused(reason), 1);
        }
        for reason in Cut::ALL {
            counts.count_cut(reason);
            assert_eq!(counts.cut(reason), 1);
        }
        let names: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::name).into();
        assert_eq!(names.len(), Refusal::ALL.len());
        let names: std::collections::HashSet<_> = Cut::ALL.map(Cut::name).into();
        assert_eq!(names.len(), Cut::ALL.len());
    }
}
