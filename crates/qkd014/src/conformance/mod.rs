//! A black-box tester of ETSI GS QKD 014 KMEs: any two, of any vendor.
//!
//! Knows the standard and how it is commonly read, and nothing of what is inside a KME. `docs/conformance.md` lists
//! the tests T1 to T54. Keys that it receives are wiped and never part of a report.

mod cases;
mod exchange;
mod outcome;
mod report;
mod session;
mod setup;
mod wire;

pub use cases::TESTS;
pub use outcome::Failure;
pub use report::{Report, Row, Verdict};
pub use setup::{Hooks, Profile, Sae, Setup};

use session::Session;

/// Runs the tests that `setup` allows and reports on every one.
pub async fn run(setup: Setup) -> Report {
    let session = Session::open(setup).await;
    let mut cases = cases::all();
    // Stable: the order of numbers within a phase.
    cases.sort_by_key(|case| case.phase);
    let mut rows = Vec::new();
    for case in &cases {
        if session.setup.only.is_empty() || session.setup.only.contains(&case.number) {
            rows.push(session.run(case).await);
        }
    }
    rows.sort_by_key(|row| row.number);
    Report { rows, profile: session.setup.profile, keys_used: session.keys_used() }
}
