//! How one pool server stands with this site: whether it answers, and for which peers' sets it is not used.
//!
//! What a peer says of a server counts only for sets that this site shares with that peer. A peer that lies
//! can thus steer nothing but keys that it gets anyway. Two peers that say the same do not count for a third
//! either: else two hostile KMEs could drive the sets of others away from honest servers, to breached ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kme::{Backoff, KmeId, causes};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::client::PoolClientError;

/// How long a server is not asked after it failed.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_mins(1));
/// How long a server is not used for a peer after its pool differed between the two sites. It doubles with
/// each time, and is forgotten at a restart.
const QUARANTINE: Backoff = Backoff::new(Duration::from_mins(10), Duration::from_hours(24));
/// How long a server is asked only if there is no other, after it counted reads that the others did not. It
/// doubles with each time, and is forgotten at a restart.
const DOUBT: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_hours(1));
/// Characters that are kept of what was said of a failure.
const REASON_MAX_CHARS: usize = 200;

/// One pool server's standing.
#[derive(Debug, Default)]
pub(super) struct Standing(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    own: Failures,
    /// One entry for each configured peer at most: nobody else is heard.
    at_peers: BTreeMap<KmeId, AtPeer>,
}

#[derive(Debug, Default)]
struct AtPeer {
    failures: Failures,
    /// Of its counts of reads. No download makes up for them.
    doubts: Failures,
    quarantines: u32,
    quarantine_until: Option<Instant>,
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    retry_at: Option<Instant>,
    /// The server did not answer. It is in use again when it answers, however long that takes.
    is_silent: bool,
    reason: String,
}

impl Failures {
    fn add(&mut self, pause: Backoff, is_silent: bool, reason: &str) {
        self.count = self.count.saturating_add(1);
        self.retry_at = Some(Instant::now() + pause.after(self.count));
        self.is_silent = is_silent;
        self.reason = reason.chars().take(REASON_MAX_CHARS).collect();
    }

    fn is_due(&self) -> bool {
        self.retry_at.is_none_or(|at| at <= Instant::now())
    }

    fn is_paused(&self) -> bool {
        self.is_silent || !self.is_due()
    }

    fn trouble(&self) -> Option<String> {
        self.is_paused().then(|| self.reason.clone())
    }
}

/// How a pool server stands, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStanding {
    /// Why this site does not ask it at present.
    pub trouble: Option<String>,
    /// The peers that could not download from it, with what they said.
    pub failed_at: Vec<(KmeId, String)>,
    /// The peers for whose sets it is asked only if there is no other: it counted reads of their pools that the
    /// other servers did not.
    pub doubted_for: Vec<KmeId>,
    /// The peers for whose sets it is under quarantine.
    pub quarantined_for: Vec<KmeId>,
}

impl Standing {
    /// Notes how a call of this site went.
    pub(super) fn note<T>(&self, result: &Result<T, PoolClientError>) {
        let own = &mut self.0.lock().own;
        match result {
            Ok(_) => *own = Failures::default(),
            Err(error) if error.blames_server() => own.add(PAUSE, error.is_silence(), &causes(error)),
            Err(_) => {}
        }
    }

    /// Notes that a silent server answers again. What else it did wrong only passes with time, or with a pool
    /// that is as it should be.
    pub(super) fn note_answer(&self) {
        let own = &mut self.0.lock().own;
        if own.is_silent {
            *own = Failures::default();
        }
    }

    /// Notes that `peer` could not download a pool.
    pub(super) fn note_failure_at(&self, peer: &KmeId, reason: &str) {
        self.0.lock().at_peers.entry(peer.clone()).or_default().failures.add(PAUSE, false, reason);
    }

    /// Notes that `peer` downloaded a pool.
    pub(super) fn note_success_at(&self, peer: &KmeId) {
        if let Some(at) = self.0.lock().at_peers.get_mut(peer) {
            at.failures = Failures::default();
        }
    }

    /// Notes that the server counted reads of a pool shared with `peer` that no other server counted.
    pub(super) fn note_doubt(&self, peer: &KmeId) {
        let reason = "it counted reads of a pool that the other servers did not";
        let mut notes = self.0.lock();
        let doubts = &mut notes.at_peers.entry(peer.clone()).or_default().doubts;
        // What comes meanwhile is of sets that were made before.
        if doubts.is_due() {
            doubts.add(DOUBT, false, reason);
        }
    }

    /// Does not use the server for sets that are shared with `peer`, for the time that is returned.
    pub(super) fn quarantine(&self, peer: &KmeId) -> Duration {
        let mut notes = self.0.lock();
        let at = notes.at_peers.entry(peer.clone()).or_default();
        let now = Instant::now();
        // Batches of one set fail together: that is one time.
        if at.quarantine_until.is_none_or(|until| until <= now) {
            at.quarantines = at.quarantines.saturating_add(1);
            at.quarantine_until = Some(now + QUARANTINE.after(at.quarantines));
        }
        at.quarantine_until.map_or(Duration::ZERO, |until| until - now)
    }

    /// Whether a set for `peers` may use the server.
    pub(super) fn is_trusted_for(&self, peers: &BTreeSet<KmeId>) -> bool {
        let notes = self.0.lock();
        let now = Instant::now();
        let is_quarantined = |at: &AtPeer| at.quarantine_until.is_some_and(|until| until > now);
        !peers.iter().filter_map(|peer| notes.at_peers.get(peer)).any(is_quarantined)
    }

    /// Whether the server should be asked for a set for `peers` only if there is no other.
    pub(super) fn is_paused_for(&self, peers: &BTreeSet<KmeId>) -> bool {
        let notes = self.0.lock();
        let mut at_peers = peers.iter().filter_map(|peer| notes.at_peers.get(peer));
        notes.own.is_paused() || at_peers.any(|at| at.failures.is_paused() || at.doubts.is_paused())
    }

    /// Whether it is time to find out if a silent server is back.
    pub(super) fn is_due(&self) -> bool {
        let notes = self.0.lock();
        notes.own.is_silent && notes.own.is_due()
    }

    pub(super) fn look(&self) -> ServerStanding {
        let notes = self.0.lock();
        let now = Instant::now();
        let at = |name: &KmeId, at: &AtPeer| at.failures.trouble().map(|reason| (name.clone(), reason));
        let doubted = notes.at_peers.iter().filter(|(_, at)| at.doubts.is_paused());
        let is_quarantined = |at: &AtPeer| at.quarantine_until.is_some_and(|until| until > now);
        let quarantined = notes.at_peers.iter().filter(|(_, at)| is_quarantined(at));
        ServerStanding {
            trouble: notes.own.trouble(),
            failed_at: notes.at_peers.iter().filter_map(|(name, notes)| at(name, notes)).collect(),
            doubted_for: doubted.map(|(name, _)| name.clone()).collect(),
            quarantined_for: quarantined.map(|(name, _)| name.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kme(name: &str) -> KmeId {
        name.parse().unwrap()
    }

    fn group(names: &[&str]) -> BTreeSet<KmeId> {
        names.iter().map(|name| kme(name)).collect()
    }

    fn slow() -> Result<(), PoolClientError> {
        Err(PoolClientError::Slow("pool-1".parse().unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarantine_counts_for_the_sets_of_that_peer_only_and_grows_with_each_time() {
        let standing = Standing::default();
        assert_eq!(standing.quarantine(&kme("site-b")), Duration::from_mins(10));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(standing.quarantine(&kme("site-b")), Duration::from_mins(9), "it is the same time");
        standing.quarantine(&kme("site-c"));
        assert!(!standing.is_trusted_for(&group(&["site-b"])));
        assert!(!standing.is_trusted_for(&group(&["site-b", "site-d"])));
        assert!(standing.is_trusted_for(&group(&["site-d"])), "whatever two others say");
        assert!(standing.is_trusted_for(&group(&[])));
        assert_eq!(standing.look().quarantined_for, [kme("site-b"), kme("site-c")]);
        tokio::time::advance(Duration::from_mins(10)).await;
        assert!(standing.is_trusted_for(&group(&["site-b", "site-c"])));
        assert_eq!(standing.quarantine(&kme("site-b")), Duration::from_mins(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_paused_until_it_answers_and_a_bad_one_until_its_pause_is_over() {
        let silent = Standing::default();
        silent.note(&slow());
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!(silent.is_paused_for(&group(&[])) && silent.is_due());
        silent.note_answer();
        assert!(!silent.is_paused_for(&group(&[])));

        let bad = Standing::default();
        let what = "JSON of an unexpected shape";
        bad.note::<()>(&Err(PoolClientError::Garbled { server: "pool-1".parse().unwrap(), what }));
        bad.note_answer();
        assert!(bad.is_paused_for(&group(&[])), "that it answers was never in doubt");
        assert!(!bad.is_due());
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(!bad.is_paused_for(&group(&[])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_could_not_download_pauses_a_server_for_that_peer() {
        let standing = Standing::default();
        standing.note_failure_at(&kme("site-b"), "too slow");
        assert!(standing.is_paused_for(&group(&["site-b"])));
        assert!(!standing.is_paused_for(&group(&["site-c"])));
        assert_eq!(standing.look().failed_at, [(kme("site-b"), "too slow".to_owned())]);
        standing.note_success_at(&kme("site-b"));
        assert!(!standing.is_paused_for(&group(&["site-b"])));
    }
}
