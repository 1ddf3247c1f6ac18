//! Checks every primitive and the engine against known answers.
//!
//! `dqkd self-test` runs all of it, each start a quick part. Every input is public; no real pool or key is used.

mod primitives;
mod vectors;

use std::fmt;

use vectors::Vector;

/// The vectors of the independent reference `tests/vectors/blast1.py`.
const VECTORS: &str = include_str!("../tests/vectors/blast1-vectors.json");

/// One check, and why it failed if it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The primitive, or the vector with the product that it ran on.
    name: String,
    failure: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, outcome: Result<(), String>) -> Self {
        Self { name: name.into(), failure: outcome.err() }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => write!(f, "ok    {}", self.name),
            Some(failure) => write!(f, "FAIL  {}: {failure}", self.name),
        }
    }
}

/// Every check of a run, in order. `Display` writes one line for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    checks: Vec<Check>,
}

impl Report {
    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.failure.is_none())
    }

    /// The report itself if nothing failed.
    ///
    /// # Errors
    /// [`SelfTestError::Failed`] with the checks that failed.
    pub fn into_result(self) -> Result<Self, SelfTestError> {
        let failed: Vec<_> = self.checks.iter().filter(|check| check.failure.is_some()).cloned().collect();
        if failed.is_empty() { Ok(self) } else { Err(SelfTestError::Failed(failed)) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checks.iter().try_for_each(|check| writeln!(f, "{check}"))
    }
}

/// Why a self-test failed or could not run.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A check failed: this program must not make keys on this machine.
    #[error("the self-test failed: {}", .0.iter().map(|check| check.name.as_str()).collect::<Vec<_>>().join(", "))]
    Failed(Vec<Check>),
    /// The vector file is not JSON.
    #[error("the vectors are not valid JSON")]
    Json(#[source] serde_json::Error),
    /// The vector file is not a list of vectors.
    #[error("the vectors must be a non-empty JSON list of objects")]
    NoVectors,
    /// A field is missing or has a bad value.
    #[error("vector {vector}: field `{field}` {problem}")]
    Field {
        /// Name of the vector, or its place in the list where it has none.
        vector: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Every primitive and one vector of the engine on each product: a few milliseconds, for start-up.
///
/// # Errors
/// [`SelfTestError::Failed`] if a check fails.
pub fn run_quick() -> Result<Report, SelfTestError> {
    let mut checks = primitives::checks();
    if let Some(vector) = vectors::parse(VECTORS)?.first() {
        checks.extend(vector.checks());
    }
    Report { checks }.into_result()
}

/// Every primitive and every embedded vector on each product.
///
/// # Errors
/// Those of [`run_vectors`]. A mismatch is not an error: the report has a failed [`Check`].
pub fn run_full() -> Result<Report, SelfTestError> {
    let mut checks = primitives::checks();
    checks.extend(run_vectors(VECTORS)?.checks);
    Ok(Report { checks })
}

/// Every vector of `json` on each product of this processor.
///
/// `json` is a list in the format of `tests/vectors/blast1-vectors.json`, with any names and sizes within the
/// limits of the engine (`docs/blast-engine.md`, section 6).
///
/// # Errors
/// [`SelfTestError`] with the vector and the field if the list is malformed; then nothing ran. A mismatch is not an
/// error: the report has a failed [`Check`].
pub fn run_vectors(json: &str) -> Result<Report, SelfTestError> {
    let checks = vectors::parse(json)?.iter().flat_map(Vector::checks).collect();
    Ok(Report { checks })
}

#[cfg(test)]
mod tests;
