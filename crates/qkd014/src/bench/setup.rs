//! What is measured: KMEs, certificates, kind and amount of load.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::credentials::Credentials;
use crate::https::KmeUrl;

/// How many windows a measurement has, and how long they are, unless the caller says how long.
const WINDOWS: u32 = 10;
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(10);

/// One SAE and the KME that serves it.
#[derive(Clone)]
pub struct End {
    /// The KME.
    pub url: KmeUrl,
    /// What the other SAE's paths call this one: its SAE ID, or the ID of its KME.
    pub name: String,
    /// The SAE's certificate and the CA of the KMEs.
    pub credentials: Credentials,
}

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `enc_keys` at A.
    Enc,
    /// `dec_keys` at B of keys that A fetched before.
    Dec,
    /// `enc_keys` at A, then `dec_keys` of the same at B.
    Pair,
    /// A new connection to A, one `enc_keys`, and the end of the connection.
    Handshake,
}

impl Operation {
    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enc => "enc",
            Self::Dec => "dec",
            Self::Pair => "pair",
            Self::Handshake => "handshake",
        }
    }
}

/// In which order `dec` retrieves the keys that A has fetched and B has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The last that were fetched come first.
    #[default]
    Newest,
    /// Any of them, each as likely as the others.
    Random,
}

impl Order {
    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Random => "random",
        }
    }
}

/// Version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// 1.1: one request at a time on a connection.
    V1,
    /// 2: several requests at a time on a connection.
    V2 {
        /// Requests at a time on one connection.
        streams: usize,
    },
}

impl Http {
    pub(super) fn streams(self) -> usize {
        match self {
            Self::V1 => 1,
            Self::V2 { streams } => streams.max(1),
        }
    }

    /// Its number in reports.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 { .. } => 2,
        }
    }
}

/// Kind and amount of load.
#[derive(Clone, Debug)]
pub struct Load {
    /// What one operation is.
    pub operation: Operation,
    /// For `dec`.
    pub order: Order,
    /// How requests are sent.
    pub http: Http,
    /// Connections at once, to each KME that is asked.
    pub connections: usize,
    /// Threads of the client.
    pub threads: usize,
    /// Keys of one request.
    pub number: u32,
    /// How many slaves `enc_keys` names one after the other instead of B: B's name with -1, -2 and so on.
    pub slaves: Option<usize>,
    /// Bits of a key; the KME's own choice unless given.
    pub size_bits: Option<u32>,
    /// Time before the clock runs, under the same load.
    pub warmup: Duration,
    /// Time that is measured.
    pub duration: Duration,
    /// Operations a second, due whether or not earlier ones have ended; as many as possible unless given.
    pub rate: Option<f64>,
    /// Longest time for one answer.
    pub timeout: Duration,
}

/// The baseline, which is started on this machine.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// CA certificates of the SAEs, whose certificates it verifies; PEM.
    pub client_ca: PathBuf,
    /// Its own certificate and key; PEM. It makes a throw-away certificate unless given.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Time that it is measured; as long as the KMEs unless given.
    pub duration: Option<Duration>,
}

/// Everything that a measurement needs.
pub struct Setup {
    /// The master SAE.
    pub a: End,
    /// The slave SAE.
    pub b: End,
    /// Kind and amount of load.
    pub load: Load,
    /// How often everything is measured.
    pub rounds: usize,
    /// Length of a window; a tenth of the time, from 1 to 10 seconds, unless given. Figures of each window are
    /// reported during the measurement of the KMEs, and are part of the report.
    pub window: Option<Duration>,
    /// Measured before each round in the same way, if given.
    pub baseline: Option<Baseline>,
    /// For `dec`: keys that A has fetched and B has not when the clock starts; enough for the whole time unless
    /// given. What a round leaves is part of the next one's. For others: ready keys to wait for; none unless
    /// given.
    pub stock: Option<u64>,
    /// Most operations of one round whose keys are kept and compared with their twins.
    pub compared_max: usize,
    /// Servers by name and URL. Their processor time is reported if they run on this machine.
    pub servers: Vec<(String, String)>,
}

/// When the keys of a measurement are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Supply {
    /// While they are asked for: what a KME can go on with.
    Sustained,
    /// Before the clock runs.
    Stocked,
}

impl Setup {
    /// When the keys are made.
    pub(super) fn supply(&self) -> Supply {
        let is_stocked = self.load.operation == Operation::Dec || self.stock.is_some_and(|keys| keys > 0);
        if is_stocked { Supply::Stocked } else { Supply::Sustained }
    }

    /// The length of a window.
    pub(super) fn window(&self) -> Duration {
        self.window.unwrap_or_else(|| (self.load.duration / WINDOWS).clamp(WINDOW_MIN, WINDOW_MAX))
    }
}
