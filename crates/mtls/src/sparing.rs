//! A log for events that a client can repeat: the first few of a kind are written, the others are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

/// Lines about one client and one kind of event in one period.
const LINES_MAX: u32 = 5;
/// How long events are counted together.
const PERIOD: Duration = Duration::from_mins(1);
/// Most clients and kinds that are told apart. Events of others are counted together, and none is written.
const KEYS_MAX: usize = 1024;
/// Stands for the clients and kinds beyond [`KEYS_MAX`].
const OTHERS: (&str, &str) = ("(others)", "(others)");

/// Decides which events of a listener are worth a line: for each client and kind of event five in a minute.
/// When the minute is over, one line says how many others there were.
///
/// Clones count together.
#[derive(Clone, Debug)]
pub struct SparingLog {
    listener: &'static str,
    seen: Arc<Mutex<HashMap<(String, &'static str), Seen>>>,
}

/// The events of one client and kind since `since`.
#[derive(Debug)]
struct Seen {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl SparingLog {
    /// For the events of `listener`.
    pub fn new(listener: &'static str) -> Self {
        Self { listener, seen: Arc::default() }
    }

    /// Whether to write a line about what `client` did. `event` is a name in the program. Must be called
    /// inside a Tokio runtime.
    pub fn allows(&self, client: &str, event: &'static str) -> bool {
        let now = Instant::now();
        let mut seen = self.seen.lock();
        let mut key = (client.to_owned(), event);
        if !seen.contains_key(&key) && seen.len() >= KEYS_MAX {
            key = (OTHERS.0.to_owned(), OTHERS.1);
        }
        let is_other = key.1 == OTHERS.1;
        let entry = seen.entry(key.clone()).or_insert(Seen { since: now, written: 0, left_out: 0 });
        if entry.written == 0 && entry.left_out == 0 {
            let log = self.clone();
            tokio::spawn(async move {
                sleep(PERIOD).await;
                log.close(&key);
            });
        }
        let is_written = entry.written < LINES_MAX && !is_other;
        if is_written {
            entry.written += 1;
        } else {
            entry.left_out += 1;
        }
        is_written
    }

    /// Ends a period.
    fn close(&self, key: &(String, &'static str)) {
        let Some(seen) = self.seen.lock().remove(key) else { return };
        if seen.left_out > 0 {
            tracing::warn!(
                listener = self.listener,
                client = key.0,
                event = key.1,
                left_out = seen.left_out,
                seconds = seen.since.elapsed().as_secs(),
                "more lines like the last ones were left out"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_client_and_event_has_its_lines_and_a_new_minute_has_new_ones() {
        let log = SparingLog::new("test");
        for _ in 0..2 {
            for (client, event) in [("alice", "a"), ("alice", "b"), ("bob", "a")] {
                let written = (0..1000).filter(|_| log.allows(client, event)).count();
                assert_eq!(written, LINES_MAX as usize, "{client} {event}");
            }
            let left_out: u64 = log.seen.lock().values().map(|seen| seen.left_out).sum();
            assert_eq!(left_out, 3 * (1000 - u64::from(LINES_MAX)));
            sleep(2 * PERIOD).await;
            assert!(log.seen.lock().is_empty(), "what is over is forgotten");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_clients_takes_bounded_memory_and_writes_a_bounded_number_of_lines() {
        let log = SparingLog::new("test");
        let written = (0..10_000).filter(|number| log.allows(&number.to_string(), "a")).count();
        assert_eq!(written, KEYS_MAX);
        assert_eq!(log.seen.lock().len(), KEYS_MAX + 1);
        sleep(2 * PERIOD).await;
        assert!(log.seen.lock().is_empty());
    }
}
