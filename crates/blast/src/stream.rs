//! The engine's pseudo-random stream: ChaCha20, stream 0, under a sub-seed.
//!
//! Wipes the generator, because `rand_chacha` leaves key and buffered words behind when it is dropped. Both lie inside
//! the value and nothing is on the heap, so writing the generator of the zero key over it erases them.

use std::hint::black_box;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// A generator that overwrites itself on drop. Never printed or cloned.
pub(super) struct Stream(ChaCha20Rng);

impl Stream {
    /// The stream of `key`: 64-bit block counter and 64-bit stream number, both from zero.
    pub(super) fn of(key: &[u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(*key))
    }

    /// The next 32 bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// The next 64 bits: two words of 32, the low half first.
    pub(super) fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Overwrites key, counter and buffered words.
    fn wipe(&mut self) {
        self.0 = ChaCha20Rng::from_seed([0; 32]);
        // The compiler must assume that this reads the value, so it has to store the zeros.
        black_box(&mut self.0);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// The bytes of `value` as the kernel sees them: what the compiler thinks of them does not matter.
    fn memory_of<T>(value: &T) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<T>()];
        let address = u64::try_from((&raw const *black_box(value)).addr()).unwrap();
        File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    fn holds(memory: &[u8], secret: &[u8]) -> bool {
        memory.windows(secret.len()).any(|window| window == secret)
    }

    #[test]
    fn a_dropped_stream_leaves_neither_key_nor_words_where_it_was() {
        let key: [u8; 32] = std::array::from_fn(|index| 0xa0 ^ u8::try_from(index).unwrap());
        let mut other = Stream::of(&key);
        let words: Vec<[u8; 4]> = (0..64).map(|_| other.next_u32().to_le_bytes()).collect();
        let mut slot = Box::new(Some(Stream::of(&key)));
        assert_eq!((*slot).as_mut().unwrap().next_u32().to_le_bytes(), words[0]);
        let before = memory_of(&*slot);
        assert!(holds(&before, &key) && words[1..].iter().all(|word| holds(&before, word)));

        *slot = None;

        let after = memory_of(&*slot);
        assert!(key.chunks(4).all(|part| !holds(&after, part)), "the key");
        assert!(words.iter().all(|word| !holds(&after, word)), "words drawn or to be drawn");
    }
}
