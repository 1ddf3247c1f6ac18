//! How a test ends, and what it requires of a refusal.

use super::exchange::Exchange;

/// One deviation that a test found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Failure {
    /// What the standard or its reading demands.
    pub expected: String,
    /// The request, without secrets.
    pub sent: String,
    /// The answer, without keys.
    pub received: String,
    /// Clause of the standard, with the requirement (R) or reading (A) of `docs/etsi-014.md`.
    pub clause: &'static str,
}

/// Why a test stops early.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot be run here.
    Skip(String),
    /// It failed, and the rest of it depends on that.
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

/// Skips a test that lacks something.
pub(super) fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

/// A sentence of the standard for `message`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sentence {
    pub(super) text: &'static str,
    /// Whether the standard says "shall".
    pub(super) is_demanded: bool,
}

impl Sentence {
    /// R35.
    pub(super) const OCTETS: Self = Self::shall("size shall be a multiple of 8");
    /// R38.
    pub(super) const UNSUPPORTED: Self = Self::shall("not all extension_mandatory parameters are supported");
    /// R39.
    pub(super) const UNMET: Self = Self::shall("not all extension_mandatory request options could be met");
    /// R40.
    pub(super) const UNHANDLED: Self =
        Self { text: "not all extension_optional request options handled", is_demanded: false };
    /// R51.
    pub(super) const NOT_FOUND: Self = Self::shall("one or more keys specified are not found on KME");

    const fn shall(text: &'static str) -> Self {
        Self { text, is_demanded: true }
    }

    /// Compares as existing clients do: ignores letter case, outer spaces and a final dot.
    pub(super) fn is_meant_by(self, message: &str) -> bool {
        message.trim().trim_end_matches('.').eq_ignore_ascii_case(self.text)
    }
}

/// How a request must be refused.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub clause: &'static str,
    /// What the request asked for, in a few words.
    pub(super) of: &'static str,
    pub(super) statuses: Vec<u16>,
    /// The lenient profile also accepts these, with a note.
    pub(super) tolerated: Vec<u16>,
    pub sentence: Option<Sentence>,
}

impl Refusal {
    /// With 400.
    pub(super) fn of(clause: &'static str, of: &'static str) -> Self {
        Self { clause, of, statuses: vec![400], tolerated: Vec::new(), sentence: None }
    }

    /// With one of these statuses instead.
    pub(super) fn with(mut self, statuses: &[u16]) -> Self {
        self.statuses = statuses.to_vec();
        self
    }

    /// The lenient profile also accepts these; 200 stands for an answer with keys.
    pub(super) fn tolerate(mut self, statuses: &[u16]) -> Self {
        self.tolerated = statuses.to_vec();
        self
    }

    /// With this sentence.
    pub(super) fn saying(mut self, sentence: Sentence) -> Self {
        self.sentence = Some(sentence);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_meant_whatever_its_case_spaces_and_final_dot_but_no_other_words() {
        for meant in ["size shall be a multiple of 8", " Size shall be a multiple of 8. "] {
            assert!(Sentence::OCTETS.is_meant_by(meant), "{meant}");
        }
        for other in ["", "size must be a multiple of 8", "size shall be a multiple of 8 bits"] {
            assert!(!Sentence::OCTETS.is_meant_by(other), "{other}");
        }
    }
}
