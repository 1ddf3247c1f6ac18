//! What the checks of every Rust client share: where the demo's sites and certificates are, and how a check is
//! counted and told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Sentences of ETSI GS QKD 014, clauses 6.2 and 6.4, to the letter.
pub const KEYS_NOT_FOUND: &str = "one or more keys specified are not found on KME";
/// See [`KEYS_NOT_FOUND`].
pub const NOT_A_MULTIPLE: &str = "size shall be a multiple of 8";
/// What this KME says of a slave that nobody knows.
pub const UNKNOWN_SLAVE: &str = "the SAE or KME in the path is unknown";
/// A key ID that no KME ever gave.
pub const NOBODYS_KEY: &str = "7b0b5ab2-5f0e-4c0f-9f8e-3d2c1b0a9f8e";

/// What `demo.json` says.
#[derive(Deserialize)]
pub struct Demo {
    /// Certificate of the authority.
    pub ca: PathBuf,
    sites: Vec<Site>,
}

#[derive(Deserialize)]
struct Site {
    sae_url: String,
    saes: Vec<Sae>,
}

/// One application's certificate.
#[derive(Deserialize)]
pub struct Sae {
    id: String,
    /// PEM.
    pub cert: PathBuf,
    /// PEM, PKCS 8.
    pub key: PathBuf,
}

impl Demo {
    /// Reads the file that the first argument of the program names.
    pub fn of_arguments() -> Self {
        let file = std::env::args().nth(1).expect("the first argument is a demo.json");
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    /// The URL of the site that an SAE lives at, and its certificate.
    pub fn sae(&self, id: &str) -> (&str, &Sae) {
        let all = self.sites.iter().flat_map(|site| site.saes.iter().map(|sae| (&*site.sae_url, sae)));
        all.into_iter().find(|(_, sae)| sae.id == id).unwrap()
    }
}

/// Tells and counts the checks of one client.
pub struct Checks {
    client: &'static str,
    failed: u32,
}

impl Checks {
    /// Of a client with this name and version.
    pub fn of(client: &'static str) -> Self {
        Self { client, failed: 0 }
    }

    /// Runs one check, which fails by panicking.
    pub fn check(&mut self, rule: &str, check: impl FnOnce()) {
        let held = catch_unwind(AssertUnwindSafe(check)).is_ok();
        self.failed += u32::from(!held);
        println!("{:<5} {}: {rule}", if held { "ok" } else { "FAIL" }, self.client);
    }

    /// Whether all held.
    pub fn end(self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Length of a key in bits.
pub fn bits_of(base64: &str) -> usize {
    8 * STANDARD.decode(base64).expect("a key is padded standard base64").len()
}
