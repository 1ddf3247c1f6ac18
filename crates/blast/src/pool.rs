//! A pool as the engine reads it.

use std::fmt;

use kme::PoolId;

/// One pool that both sites hold.
#[derive(Clone, Copy)]
pub struct SourcePool<'a> {
    /// Its ID at its pool server.
    pub id: PoolId,
    /// Its words, read little-endian from the pool's bytes. Secret. Their number is a power of two, 2^14 to 2^27.
    pub words: &'a [u64],
}

impl fmt::Debug for SourcePool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourcePool({}, {} words)", self.id, self.words.len())
    }
}
