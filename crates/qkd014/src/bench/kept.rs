//! Answers kept until the clock has stopped: all of them, or an even sample.

use zeroize::Zeroizing;

/// Answers are stored in pieces of at least this many bytes, which never move and are wiped.
const PIECE_BYTES: usize = 256 * 1024;

/// The answers of operations: the body of `enc_keys`, the body of `dec_keys`, or both.
#[derive(Default)]
pub(super) struct KeptAnswers {
    pieces: Vec<Zeroizing<Vec<u8>>>,
    places: Vec<Place>,
    max: usize,
    /// Keeps every `stride`-th operation.
    stride: u64,
    seen: u64,
}

#[derive(Clone, Copy)]
struct Place {
    piece: usize,
    start: usize,
    enc: usize,
    dec: usize,
}

impl KeptAnswers {
    /// Room for the answers of `max` operations. When it is full, every second one is dropped.
    pub(super) fn with_room_for(max: usize) -> Self {
        Self { max, stride: 1, ..Self::default() }
    }

    /// Operations that were kept or could have been.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn keep(&mut self, enc: &[u8], dec: &[u8]) {
        let number = self.seen;
        self.seen += 1;
        if self.max == 0 || !number.is_multiple_of(self.stride) {
            return;
        }
        if self.places.len() >= self.max {
            self.thin_out();
            if !number.is_multiple_of(self.stride) {
                return;
            }
        }
        self.push(enc, dec);
    }

    /// Adds the answers of `others`.
    pub(super) fn append(&mut self, others: Self) {
        let before = self.pieces.len();
        self.pieces.extend(others.pieces);
        self.places
            .extend(others.places.into_iter().map(|place| Place { piece: place.piece + before, ..place }));
        self.seen += others.seen;
    }

    /// The bodies of `enc_keys` and `dec_keys`; empty where there was none.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places.iter().filter_map(|place| {
            let both = self.pieces.get(place.piece)?.get(place.start..place.start + place.enc + place.dec)?;
            both.split_at_checked(place.enc)
        })
    }

    fn push(&mut self, enc: &[u8], dec: &[u8]) {
        let len = enc.len() + dec.len();
        let has_room = self.pieces.last().is_some_and(|piece| piece.capacity() - piece.len() >= len);
        if !has_room {
            self.pieces.push(Zeroizing::new(Vec::with_capacity(len.max(PIECE_BYTES))));
        }
        let last = self.pieces.len() - 1;
        if let Some(piece) = self.pieces.last_mut() {
            self.places.push(Place { piece: last, start: piece.len(), enc: enc.len(), dec: dec.len() });
            piece.extend_from_slice(enc);
            piece.extend_from_slice(dec);
        }
    }

    fn thin_out(&mut self) {
        let mut thinned = Self { max: self.max, stride: 2 * self.stride, seen: self.seen, ..Self::default() };
        for (enc, dec) in self.iter().step_by(2) {
            thinned.push(enc, dec);
        }
        *self = thinned;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(max: usize, operations: u32) -> Vec<u32> {
        let mut answers = KeptAnswers::with_room_for(max);
        for number in 0..operations {
            answers.keep(number.to_string().as_bytes(), b"dec");
        }
        let number = |(enc, dec): (&[u8], &[u8])| {
            assert_eq!(dec, b"dec");
            std::str::from_utf8(enc).unwrap().parse().unwrap()
        };
        answers.iter().map(number).collect()
    }

    #[test]
    fn all_are_kept_while_there_is_room_and_an_even_sample_of_more() {
        assert_eq!(kept(8, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(8, 9), [0, 2, 4, 6, 8]);
        assert_eq!(kept(4, 100), [0, 32, 64, 96]);
        assert_eq!(kept(0, 100), Vec::<u32>::new());
    }

    #[test]
    fn answers_of_several_are_put_together() {
        let mut all = KeptAnswers::default();
        for text in ["one", "two"] {
            let mut answers = KeptAnswers::with_room_for(2);
            answers.keep(text.as_bytes(), b"");
            answers.keep(b"", &vec![7; 2 * PIECE_BYTES]);
            all.append(answers);
        }
        let lens: Vec<_> = all.iter().map(|(enc, dec)| (enc.to_vec(), dec.len())).collect();
        let long = 2 * PIECE_BYTES;
        assert_eq!(lens, [(b"one".to_vec(), 0), (vec![], long), (b"two".to_vec(), 0), (vec![], long)]);
    }
}
