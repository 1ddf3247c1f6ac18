//! Why a measurement could not be made.

/// Why a measurement could not be made, in words for whoever asked for it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(pub(super) String);
