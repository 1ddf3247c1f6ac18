//! Tests any two KMEs of any vendor against ETSI GS QKD 014, as a black box.
//!
//! It knows the standard and how it is commonly read, but nothing of a KME's internals. `docs/conformance.md`
//! lists the tests T1 to T54. Keys are wiped and never appear in a report.

mod cases;
mod exchange;
mod outcome;
mod report;
mod session;
mod setup;

pub use cases::TESTS;
pub use outcome::Failure;
pub use report::{Report, Row, Verdict};
pub use setup::{Hooks, Profile, Sae, Setup};

use cases::Case;
use outcome::Stop;
use session::Session;
use tokio::time::Instant;

/// Runs the tests that `setup` allows and reports on every one.
pub async fn run(setup: Setup) -> Report {
    let session = Session::open(setup).await;
    let mut cases = cases::all();
    // A stable sort: within a phase, tests stay in the order of their numbers.
    cases.sort_by_key(|case| case.phase);
    let mut rows = Vec::new();
    for case in &cases {
        if session.setup.only.is_empty() || session.setup.only.contains(&case.number) {
            rows.push(row(&session, case).await);
        }
    }
    rows.sort_by_key(|row| row.number);
    Report { rows, profile: session.setup.profile, keys_used: session.keys_used() }
}

/// Runs one test.
async fn row(session: &Session, case: &Case) -> Row {
    let started = Instant::now();
    let ended = (case.run)(session).await;
    let (mut failures, notes) = session.take_findings();
    let verdict = match ended {
        Err(Stop::Fail(failure)) => {
            failures.push(failure);
            Verdict::Failed(failures)
        }
        _ if !failures.is_empty() => Verdict::Failed(failures),
        Err(Stop::Skip(reason)) => Verdict::Skipped(reason),
        Ok(()) => Verdict::Passed,
    };
    Row { number: case.number, title: case.title, verdict, notes, duration: started.elapsed() }
}
