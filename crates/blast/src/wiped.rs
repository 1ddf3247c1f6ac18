//! Working memory of the engine: buffers that are wiped on drop, as fast as memory is filled.
//!
//! `Zeroizing` writes element by element, and a `Vec`'s spare capacity byte by byte: measured, a good part of a
//! batch. Here one fill and the barrier of the `zeroize` crate, which the compiler cannot look through, so that
//! it cannot drop the fill as a dead store.

use std::ops::{Deref, DerefMut};

use zeroize::optimization_barrier;

/// Elements of a fixed number on the heap, wiped on drop. Never printed, cloned or grown.
pub struct Wiped<T: Copy + Default>(Box<[T]>);

impl<T: Copy + Default> Wiped<T> {
    /// `count` times `value`.
    pub(super) fn filled(value: T, count: usize) -> Self {
        Self(vec![value; count].into_boxed_slice())
    }

    /// `count` zeros (or whatever the default of the type is).
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
