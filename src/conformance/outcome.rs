//! What a test comes to.

use super::exchange::Exchange;

/// One thing that was not as it should be.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What the standard or its reading demands.
    pub(super) expected: String,
    /// The request, without secrets.
    pub(super) sent: String,
    /// The answer, without keys.
    pub(super) received: String,
    /// Clause of the standard, and the row of `docs/etsi-014.md`.
    pub(super) clause: &'static str,
}

/// Why a test ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot be run here.
    Skip(String),
    /// It failed in a way that the rest builds on.
    Fail(Failure),
}

/// What a test function returns.
pub(super) type Ended = Result<(), Stop>;

impl Failure {
    pub(super) fn new(exchange: &Exchange, clause: &'static str, expected: impl Into<String>) -> Self {
        let (sent, received) = (exchange.sent(), exchange.received());
        Self { expected: expected.into(), sent, received, clause }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

/// Ends a test that lacks something.
pub(super) fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}
