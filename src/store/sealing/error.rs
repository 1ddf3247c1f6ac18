//! Why something cannot be sealed or opened.

use kme::RandomError;

/// Why something cannot be sealed or opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SealError {
    /// The KEK that wrapped a data key was not given.
    #[error(
        "the KEK that sealed these keys was not given: its ID is {kek_id}; add it to the KEK file as a further line"
    )]
    UnknownKek {
        /// The missing KEK's ID.
        kek_id: String,
    },
    /// The random generator failed.
    #[error("no random bytes for sealing: {0}")]
    Random(String),
    /// The cipher refused. Does not happen with keys and lengths of the right size.
    #[error("the cipher failed")]
    Crypto,
}

impl From<RandomError> for SealError {
    fn from(error: RandomError) -> Self {
        Self::Random(error.to_string())
    }
}
