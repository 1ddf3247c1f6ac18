//! Who comes first: the caller of a retrieval that gives up, or the writer that commits it.
//!
//! Without this a caller could be told that nothing was used up while its retrieval is about to be committed.

use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const CLAIMED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Shared by one job and its caller.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU8);

impl Turn {
    /// For the writer, right before a commit: `false` when the caller has given up, so it must not take place.
    /// May be repeated.
    pub(super) fn claim(&self) -> bool {
        self.change(CLAIMED)
    }

    /// For the caller: `false` when a commit may be under way, so only its result says what became of it. May be
    /// repeated.
    pub(super) fn give_up(&self) -> bool {
        self.change(GIVEN_UP)
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }

    fn change(&self, to: u8) -> bool {
        match self.0.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == to,
        }
    }
}
