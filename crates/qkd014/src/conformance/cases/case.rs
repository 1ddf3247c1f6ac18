//! A test: its number, its title, when it is run, and its function.

use std::pin::Pin;

use super::super::outcome::Ended;
use super::super::session::Session;

/// When a test is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::conformance) enum Phase {
    /// Leaves the KMEs as they are.
    Calm,
    /// Kills KMEs or cuts their link.
    Disturbs,
    /// Empties the store of a pair.
    Drains,
    /// Reports on all answers of the run.
    Sums,
}

type Running<'s> = Pin<Box<dyn Future<Output = Ended> + Send + 's>>;

/// One test.
pub(in crate::conformance) struct Case {
    pub(in crate::conformance) number: u32,
    pub(in crate::conformance) title: &'static str,
    pub(in crate::conformance) phase: Phase,
    pub(in crate::conformance) run: for<'s> fn(&'s Session) -> Running<'s>,
}

/// A test from its number, title, phase and function.
macro_rules! case {
    ($number:literal, $title:literal, $phase:ident, $run:path) => {
        $crate::conformance::cases::case::Case {
            number: $number,
            title: $title,
            phase: $crate::conformance::cases::case::Phase::$phase,
            run: |session| Box::pin($run(session)),
        }
    };
}
pub(super) use case;
