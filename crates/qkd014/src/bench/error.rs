//! Why a measurement could not be made.

/// Why a measurement could not be made, as text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(pub(super) String);
