//! The rules of a key's life: pure decisions on pushes, voids, retrievals and handing out.
//!
//! The store calls these functions inside its transactions, and the model in `tests/model/` uses them to
//! search every order of events. `docs/key-life.md` shows the whole life.

use std::time::Duration;

use super::{RetrievalMode, Timestamp};

/// What a site knows of a batch when a push of it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Unknown,
    /// Nothing of the batch, but one of its key IDs belongs to another batch, or too many batches have IDs that
    /// begin like its own.
    KeyIdsInUse,
    /// Its source voided it before it arrived.
    Tombstone,
    /// A batch with this ID is on record.
    Batch {
        /// Whether its source and the digest of its content are those of the push.
        same_content: bool,
        /// Whether its source voided it.
        voided: bool,
    },
}

/// The result of storing a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is now stored durably.
    Stored,
    /// The same content was stored before. Some of its keys may have been retrieved since.
    AlreadyStored,
    /// The batch ID has other content, or a key ID is in use. Nothing was stored.
    Conflict,
    /// The source voided this batch before. Nothing was stored.
    Voided,
}

/// Decides a push. Checks for other content first, so that its sender learns nothing of the batch on record.
pub const fn push(known: Known) -> Inserted {
    match known {
        Known::Unknown => Inserted::Stored,
        Known::KeyIdsInUse | Known::Batch { same_content: false, .. } => Inserted::Conflict,
        Known::Tombstone | Known::Batch { voided: true, .. } => Inserted::Voided,
        Known::Batch { voided: false, .. } => Inserted::AlreadyStored,
    }
}

/// A key of a known batch, as a void finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAtVoid {
    /// Nobody has retrieved it here.
    Fresh,
    /// It was voided before.
    Voided,
    /// At least one party retrieved it here.
    Retrieved,
}

/// What a void does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voiding {
    /// Its material is erased.
    Erase,
    /// Nothing: it was voided before.
    AlreadyVoided,
    /// Nothing: one party has the key, so the other parties must be able to retrieve it too.
    Keep,
}

/// Decides what a void does to a key.
pub const fn void(key: KeyAtVoid) -> Voiding {
    match key {
        KeyAtVoid::Fresh => Voiding::Erase,
        KeyAtVoid::Voided => Voiding::AlreadyVoided,
        KeyAtVoid::Retrieved => Voiding::Keep,
    }
}

/// How often, and for how long, a retrieval may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How often.
    pub mode: RetrievalMode,
    /// How long the same caller may repeat a retrieval whose answer was lost.
    pub replay_window: Duration,
}

/// A retrieval that took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierUse {
    /// Whether the same caller asks again.
    pub by_same_caller: bool,
    /// When it took place.
    pub at: Timestamp,
}

/// What a party that may retrieve a key gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key. Its retrieval is used up now.
    Take,
    /// The key again.
    Repeat,
    /// Nothing.
    Spent,
}

/// Decides what a party that may retrieve a key gets. The key is here and has not expired.
pub fn claim(earlier: Option<EarlierUse>, terms: Terms, now: Timestamp) -> Claim {
    let Some(earlier) = earlier else {
        return Claim::Take;
    };
    // A window of zero is closed, even if the clock was set back.
    let repeats = earlier.by_same_caller
        && terms.replay_window > Duration::ZERO
        && now < earlier.at.plus(terms.replay_window);
    if repeats || terms.mode == RetrievalMode::UntilExpiry { Claim::Repeat } else { Claim::Spent }
}

/// What becomes of the material of a key after a retrieval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// It stays.
    Keep,
    /// It is erased in the same commit.
    Now,
    /// The sweep erases it after this moment.
    At(Timestamp),
}

/// What becomes of the material after a retrieval. `all_used`: no other party here may still retrieve the
/// key.
pub fn erasure(all_used: bool, terms: Terms, now: Timestamp) -> Erasure {
    if !all_used || terms.mode == RetrievalMode::UntilExpiry {
        Erasure::Keep
    } else if terms.replay_window.is_zero() {
        Erasure::Now
    } else {
        Erasure::At(now.plus(terms.replay_window))
    }
}

/// Whether a key may still be returned by its ID.
pub fn is_live(expires_at: Timestamp, now: Timestamp) -> bool {
    now < expires_at
}

/// Until when a ready key may be handed out: the first half of its life. The second half leaves time to
/// retrieve it, and allows for clocks that differ.
pub fn usable_until(created_at: Timestamp, expires_at: Timestamp) -> Timestamp {
    created_at.plus(expires_at.since(created_at) / 2)
}

/// Whether a ready key may be handed out.
pub fn may_hand_out(created_at: Timestamp, expires_at: Timestamp, now: Timestamp) -> bool {
    now < usable_until(created_at, expires_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Terms = Terms { mode: RetrievalMode::Once, replay_window: Duration::ZERO };
    const WINDOW: Terms = Terms { mode: RetrievalMode::Once, replay_window: Duration::from_millis(10) };
    const ALWAYS: Terms = Terms { mode: RetrievalMode::UntilExpiry, replay_window: Duration::ZERO };

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    #[test]
    fn other_content_is_a_conflict_even_of_a_voided_batch() {
        for voided in [false, true] {
            assert_eq!(push(Known::Batch { same_content: false, voided }), Inserted::Conflict);
        }
        assert_eq!(push(Known::KeyIdsInUse), Inserted::Conflict);
    }

    #[test]
    fn only_an_unknown_batch_is_stored() {
        assert_eq!(push(Known::Unknown), Inserted::Stored);
        assert_eq!(push(Known::Tombstone), Inserted::Voided);
        assert_eq!(push(Known::Batch { same_content: true, voided: true }), Inserted::Voided);
        assert_eq!(push(Known::Batch { same_content: true, voided: false }), Inserted::AlreadyStored);
    }

    #[test]
    fn a_used_retrieval_is_repeated_by_its_user_within_the_window_only() {
        let used = |by_same_caller| Some(EarlierUse { by_same_caller, at: at(100) });
        assert_eq!(claim(None, ONCE, at(0)), Claim::Take);
        assert_eq!(claim(used(true), WINDOW, at(109)), Claim::Repeat);
        assert_eq!(claim(used(true), WINDOW, at(110)), Claim::Spent);
        assert_eq!(claim(used(false), WINDOW, at(101)), Claim::Spent);
        assert_eq!(claim(used(false), ALWAYS, at(999)), Claim::Repeat);
        assert_eq!(claim(used(true), ONCE, at(50)), Claim::Spent, "a clock turned back opens no window");
    }

    #[test]
    fn material_goes_with_the_last_retrieval() {
        assert_eq!(erasure(false, ONCE, at(5)), Erasure::Keep);
        assert_eq!(erasure(true, ONCE, at(5)), Erasure::Now);
        assert_eq!(erasure(true, WINDOW, at(5)), Erasure::At(at(15)));
        assert_eq!(erasure(true, ALWAYS, at(5)), Erasure::Keep);
    }

    #[test]
    fn a_key_is_handed_out_in_the_first_half_of_its_life() {
        assert!(may_hand_out(at(100), at(200), at(149)));
        assert!(!may_hand_out(at(100), at(200), at(150)));
        assert!(is_live(at(200), at(199)));
        assert!(!is_live(at(200), at(200)));
    }
}
