//! The tester's input: KMEs, certificates, and what it may do.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::credentials::Credentials;
use crate::https::KmeUrl;

/// One SAE: its ID, its certificate, and the KME that serves it.
#[derive(Clone)]
pub struct Sae {
    /// SAE ID as the KMEs know it.
    pub id: String,
    /// The KME that serves it.
    pub url: KmeUrl,
    /// Its certificate and the CA of the KMEs.
    pub credentials: Credentials,
}

/// How much is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Also the recommended reading of what the standard leaves open, letter by letter.
    Strict,
    /// What the standard says with "shall", and what keeps keys safe. Other deviations are noted.
    Lenient,
}

/// Shell commands that act on the KMEs. A test whose command is missing is skipped.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Kills both KMEs (SIGKILL) and starts them again; ends when both serve.
    pub restart: Option<String>,
    /// Cuts the connection between the two KMEs.
    pub cut: Option<String>,
    /// Heals the connection.
    pub heal: Option<String>,
    /// Stops the supply of new key material, for KMEs that never run dry by themselves.
    pub stop_supply: Option<String>,
    /// Resumes the supply.
    pub resume_supply: Option<String>,
}

/// Everything that a run needs.
#[derive(Clone)]
pub struct Setup {
    /// Master of most tests, at the first KME.
    pub a: Sae,
    /// Slave of most tests, at the second KME.
    pub b: Sae,
    /// A third registered SAE, best at B's KME.
    pub c: Option<Sae>,
    /// A caller with a certificate of the trusted CA who is not a registered SAE.
    pub x: Option<Sae>,
    /// A caller with a certificate of a CA that the KMEs do not trust.
    pub y: Option<Sae>,
    /// A registered SAE ID with a space, `/`, `%` or letters beyond ASCII.
    pub odd_id: Option<String>,
    /// A mandatory extension that the KME supports, with a value that it cannot meet.
    pub unmet_extension: Option<Map<String, Value>>,
    /// Commands.
    pub hooks: Hooks,
    /// How much is demanded.
    pub profile: Profile,
    /// Most keys that the run may use up.
    pub max_keys: usize,
    /// Whether T45 may empty the store of the pair.
    pub drain: bool,
    /// Numbers of the tests to run; all when empty.
    pub only: Vec<u32>,
    /// Longest time for one answer.
    pub timeout: Duration,
}
