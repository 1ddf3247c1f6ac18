//! Who read the pools of this site's sets, and the alarm when somebody did who should not have.
//!
//! The pool server counts the downloads of each reader. One that was not expected means that somebody else may
//! know the pool: a thief of a certificate, or only a daemon that restarted. The set is retired either way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kme::{KmeId, PoolId, PoolServerId};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::wire::ReaderCount;

/// Most alarms about one pool: a server that lies could name thousands of readers.
const ALARMS_PER_POOL_MAX: usize = 16;

/// How long an alarm is shown to operators.
const ALARM_SHOWN: Duration = Duration::from_mins(10);

/// Downloads of one pool by one reader, beyond what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtraRead {
    pub(super) server: PoolServerId,
    pub(super) pool: PoolId,
    pub(super) reader: KmeId,
    /// Downloads that began.
    pub(super) started: u64,
    /// How many were expected; none if the reader is not among the sites of the set.
    pub(super) expected: u64,
}

/// What is expected of readers, and what else happened.
#[derive(Debug)]
pub(super) struct ReadWatch {
    /// How often each may download one pool, if not once.
    expected: BTreeMap<KmeId, u64>,
    alarms: Mutex<Alarms>,
}

#[derive(Debug, Default)]
struct Alarms {
    counts: BTreeMap<PoolServerId, u64>,
    last: Option<(Instant, ExtraRead)>,
}

impl ReadWatch {
    pub(super) fn new(expected: BTreeMap<KmeId, u64>) -> Self {
        Self { expected, alarms: Mutex::default() }
    }

    /// The reads of a pool that were not expected. `readers` are the sites of its set.
    pub(super) fn unexpected(
        &self,
        (server, pool): (&PoolServerId, PoolId),
        readers: &BTreeSet<KmeId>,
        counts: Vec<ReaderCount>,
    ) -> Vec<ExtraRead> {
        let judged = counts.into_iter().filter_map(|ReaderCount { reader, started, .. }| {
            let known = readers.contains(&reader);
            let expected = if known { self.expected.get(&reader).copied().unwrap_or(1) } else { 0 };
            (started > expected).then(|| ExtraRead {
                server: server.clone(),
                pool,
                reader,
                started,
                expected,
            })
        });
        judged.take(ALARMS_PER_POOL_MAX).collect()
    }

    /// Counts and logs reads of the pools of one set. `bits_drawn`: what was made of the set until now.
    pub(super) fn alarm(&self, set: &str, bits_drawn: u64, reads: &[ExtraRead]) {
        for read in reads {
            tracing::error!(
                set,
                server = %read.server,
                pool = %read.pool,
                reader = %read.reader,
                started = read.started,
                expected = read.expected,
                bits_drawn,
                "unexpected extra read of a pool; its set is retired. If no daemon of that reader restarted, \
                 somebody else has its certificate, or the pool server lies"
            );
            let mut alarms = self.alarms.lock();
            *alarms.counts.entry(read.server.clone()).or_default() += 1;
            alarms.last = Some((Instant::now(), read.clone()));
        }
    }

    /// Alarms since the start, for one server.
    pub(super) fn count(&self, server: &PoolServerId) -> u64 {
        self.alarms.lock().counts.get(server).copied().unwrap_or(0)
    }

    /// What to tell operators of the last alarm, for a while.
    pub(super) fn recent(&self) -> Option<String> {
        let alarms = self.alarms.lock();
        let (at, read) = alarms.last.as_ref()?;
        (at.elapsed() < ALARM_SHOWN).then(|| {
            format!(
                "KME {} read pool {} at {} {} times, {} expected; the set was retired",
                read.reader, read.pool, read.server, read.started, read.expected
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(reader: &str, started: u64) -> ReaderCount {
        ReaderCount { reader: reader.parse().unwrap(), started, completed: 0 }
    }

    #[test]
    fn a_reader_with_more_downloads_than_expected_or_of_no_site_of_the_set_is_an_alarm() {
        let readers: BTreeSet<KmeId> = ["site-a", "site-b"].map(|name| name.parse().unwrap()).into();
        let server: PoolServerId = "pool-1".parse().unwrap();
        let of = |watch: &ReadWatch, counts: &[ReaderCount]| -> Vec<(String, u64, u64)> {
            let found = watch.unexpected((&server, PoolId::from_bytes([1; 16])), &readers, counts.to_vec());
            found.into_iter().map(|read| (read.reader.to_string(), read.started, read.expected)).collect()
        };
        let counts = [count("site-a", 1), count("site-b", 2), count("site-c", 0)];
        let once = ReadWatch::new(BTreeMap::new());
        assert_eq!(of(&once, &counts), [("site-b".to_owned(), 2, 1)]);
        assert_eq!(of(&once, &[count("site-c", 1)]), [("site-c".to_owned(), 1, 0)]);
        let many: Vec<_> = (0..1000).map(|number| count(&format!("site-{number}"), 9)).collect();
        assert_eq!(of(&once, &many).len(), ALARMS_PER_POOL_MAX);
        let two_replicas = ReadWatch::new(BTreeMap::from([("site-b".parse().unwrap(), 2)]));
        assert_eq!(of(&two_replicas, &counts), []);
        assert_eq!(
            of(&two_replicas, &[count("site-b", 3), count("site-a", 2)]),
            [("site-b".to_owned(), 3, 2), ("site-a".to_owned(), 2, 1)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_is_counted_and_shown_for_a_while() {
        let watch = ReadWatch::new(BTreeMap::new());
        let server: PoolServerId = "pool-1".parse().unwrap();
        assert_eq!((watch.count(&server), watch.recent()), (0, None));
        let reader = "site-b".parse().unwrap();
        let pool = PoolId::from_bytes([1; 16]);
        let read = ExtraRead { server: server.clone(), pool, reader, started: 2, expected: 1 };
        watch.alarm("a set", 0, &[read]);
        assert_eq!(watch.count(&server), 1);
        assert!(watch.recent().unwrap().contains("KME site-b read pool"));
        tokio::time::advance(ALARM_SHOWN).await;
        assert_eq!((watch.count(&server), watch.recent()), (1, None));
    }
}
