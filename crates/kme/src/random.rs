//! Sources of random bytes.

use rustix::rand::{GetRandomFlags, getrandom};

/// The generator failed. Nothing that needs random bytes may continue.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct RandomError(#[from] std::io::Error);

/// A cryptographically secure source of random bytes.
///
/// Code that draws bytes takes one as an argument, so that simulations can replay a run.
pub trait Random: Send + Sync {
    /// Fills `out` completely.
    ///
    /// # Errors
    /// [`RandomError`] if the source fails. Then `out` is unspecified and must not be used.
    fn fill(&self, out: &mut [u8]) -> Result<(), RandomError>;
}

/// The operating system's generator (`getrandom(2)`, blocking until it is seeded).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    fn fill(&self, out: &mut [u8]) -> Result<(), RandomError> {
        let mut rest = out;
        while !rest.is_empty() {
            match getrandom(&mut *rest, GetRandomFlags::empty()) {
                Ok(filled) => rest = rest.get_mut(filled..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(RandomError(errno.into())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_random_fills_long_buffers_to_the_end() {
        // getrandom(2) may return short counts above 256 bytes; 1 MiB crosses every such limit.
        let mut buffer = vec![0_u8; 1 << 20];
        OsRandom.fill(&mut buffer).unwrap();
        let tail = &buffer[buffer.len() - 4096..];
        assert!(tail.iter().any(|byte| *byte != 0));
    }
}
