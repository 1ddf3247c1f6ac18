//! What the workload asked, and the answers. Keys appear only as digests.

use std::sync::{Arc, Mutex};

use sha3::Digest as _;
use tokio::time::Instant;
use uuid::Uuid;

/// A party in a path, or one that may retrieve a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Party {
    Sae(Arc<str>),
    /// The site with this number.
    Kme(usize),
}

/// Who asked, and where: every SAE talks to its own site.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) sae: Arc<str>,
    pub(crate) site: usize,
}

/// The request.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Enc { slaves: Vec<Slave>, number: usize, bits: usize },
    Dec { path: Party, ids: Vec<Uuid> },
    Status,
}

/// A party that keys are made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slave {
    pub(crate) party: Party,
    pub(crate) site: usize,
}

/// One key of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: Uuid,
    pub(crate) digest: [u8; 32],
    pub(crate) bits: usize,
    /// When it expires, if the answer said so.
    pub(crate) expires_ms: Option<i64>,
}

impl Seen {
    pub(crate) fn digest_of(key: &[u8]) -> [u8; 32] {
        sha3::Sha3_256::digest(key).into()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// No connection: the request was not sent.
    NotSent,
    /// It was or may have been sent, and no complete answer came.
    Lost,
    Answer(SeenAnswer),
}

#[derive(Clone, Debug)]
pub(crate) struct SeenAnswer {
    pub(crate) status: u16,
    pub(crate) retry_after: bool,
    /// `message` of an error.
    pub(crate) message: Option<String>,
    /// `None`: an answer of 200 that breaks the standard.
    pub(crate) keys: Option<Vec<Seen>>,
    /// From status: `stored_key_count` and `max_key_count`.
    pub(crate) counts: Option<(u64, u64)>,
}

/// One exchange. Times are milliseconds since the Unix epoch, taken from a clock that is never set.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) caller: Caller,
    pub(crate) ask: Ask,
    pub(crate) outcome: Outcome,
}

impl Event {
    /// The status of the answer, 0 without one.
    pub(crate) fn status(&self) -> u16 {
        if let Outcome::Answer(answer) = &self.outcome { answer.status } else { 0 }
    }

    /// The keys of an answer of 200.
    pub(crate) fn keys(&self) -> &[Seen] {
        match &self.outcome {
            Outcome::Answer(SeenAnswer { status: 200, keys: Some(keys), .. }) => keys,
            _ => &[],
        }
    }
}

/// The clock of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    epoch_ms: i64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        use kme::Clock as _;
        Self { started: Instant::now(), epoch_ms: kme::SystemClock.now().as_ms() }
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.epoch_ms + i64::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    /// Seconds since the run began, for messages.
    pub(crate) fn elapsed_secs(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Everything that happened, in the order in which it ended.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Vec<Event>>);

impl History {
    pub(crate) fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}
