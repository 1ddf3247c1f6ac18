//! What pools are filled from, and the name that readers see.

use std::fmt;
use std::sync::Arc;

use kme::{Random, RandomError};

/// The source that fills a server's pools.
///
/// A hardware source will be a further variant. Only sources that exist have one.
#[derive(Clone)]
pub enum EntropySource {
    /// The operating system's generator alone: a computational guarantee, not an unconditional one
    /// (`docs/blast-engine.md`, section 2).
    Os(Arc<dyn Random>),
}

impl EntropySource {
    /// The name that readers see as `entropy_source`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Os(_) => "os",
        }
    }

    /// Fills `out` completely.
    ///
    /// # Errors
    /// [`RandomError`] when the source fails; then discard `out`.
    pub fn fill(&self, out: &mut [u8]) -> Result<(), RandomError> {
        match self {
            Self::Os(random) => random.fill(out),
        }
    }
}

impl fmt::Debug for EntropySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntropySource({})", self.name())
    }
}
