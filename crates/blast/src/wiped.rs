//! Working memory of the engine: buffers that are wiped on drop.
//!
//! `Zeroizing` writes element by element, which took a measurable part of a batch. This fills the buffer at once; the
//! barrier of the `zeroize` crate keeps the compiler from dropping the fill as a dead store.

use std::ops::{Deref, DerefMut};

use zeroize::optimization_barrier;

/// A buffer of fixed length on the heap, wiped on drop. It cannot be printed, cloned or grown.
pub struct Wiped<T: Copy + Default>(Box<[T]>);

impl<T: Copy + Default> Wiped<T> {
    /// `count` times `value`.
    pub(super) fn filled(value: T, count: usize) -> Self {
        Self(vec![value; count].into_boxed_slice())
    }

    /// `count` zeros.
    pub(super) fn zeroed(count: usize) -> Self {
        Self::filled(T::default(), count)
    }

    fn wipe(&mut self) {
        self.0.fill(T::default());
        optimization_barrier(&*self.0);
    }
}

impl<T: Copy + Default> Deref for Wiped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Copy + Default> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Copy + Default> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_clears_every_element() {
        let mut buffer = Wiped::filled(u64::MAX, 1000);
        buffer.wipe();
        assert_eq!(*buffer, [0; 1000]);
    }
}
