//! The rules of a key's life: pure decisions on pushes, voids, retrievals and handing out.
//!
//! The store calls these functions inside its transactions, and the model in `tests/model/` uses them to
//! search every order of events. `docs/key-life.md` shows the whole life.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RetrievalMode, Timestamp};

/// How long leased keys may wait in a daemon's memory for their hand-out. After that they go back to the
/// store, where a lease takes them again.
pub const HOLD: Duration = Duration::from_mins(10);

/// The part a party plays for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It gets the key from `enc_keys`.
    Master,
    /// The key was addressed to it.
    Slave,
}

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

/// What becomes of the material after a retrieval. `others_until`: until when another party here may still
/// retrieve the key; `None` if none may.
pub fn erasure(
    others_until: Option<Timestamp>,
    expires_at: Timestamp,
    terms: Terms,
    now: Timestamp,
) -> Erasure {
    let others_until = others_until.unwrap_or(now);
    // At its expiry the key goes by itself.
    if terms.mode == RetrievalMode::UntilExpiry || others_until >= expires_at {
        return Erasure::Keep;
    }
    let end = others_until.max(now.plus(terms.replay_window));
    if end <= now { Erasure::Now } else { Erasure::At(end) }
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

/// Until when a leased key may be handed out.
pub fn hand_out_until(created_at: Timestamp, expires_at: Timestamp, leased_at: Timestamp) -> Timestamp {
    usable_until(created_at, expires_at).min(leased_at.plus(HOLD))
}

/// When the master's copies at its own site end, of keys that are handed out before `hand_out_until`: so after
/// each hand-out the master can retrieve its copy for `master_ttl` or until the key expires.
pub fn copy_ends_at(hand_out_until: Timestamp, master_ttl: Duration) -> Timestamp {
    hand_out_until.plus(master_ttl)
}

/// Until when a party may retrieve a key: a master, whose site made it, until its copy ends; a slave, also at
/// the master's site, until the key expires.
pub fn retrievable_until(role: Role, expires_at: Timestamp, copy_ends_at: Option<Timestamp>) -> Timestamp {
    match (role, copy_ends_at) {
        (Role::Master, Some(end)) => end.min(expires_at),
        (Role::Master, None) | (Role::Slave, _) => expires_at,
    }
}

/// Until when a site keeps what it knows of a batch. `has_slaves`: a slave may retrieve its keys here.
/// `ready_until`: until when some of them may be leased. `copy_ends_at`: when the master's copies end of those
/// that were leased or handed out.
pub fn kept_until(
    has_slaves: bool,
    expires_at: Timestamp,
    ready_until: Option<Timestamp>,
    copy_ends_at: Option<Timestamp>,
) -> Timestamp {
    if has_slaves { expires_at } else { ready_until.max(copy_ends_at).unwrap_or(expires_at).min(expires_at) }
}

/// Until when a store shows for certain whether keys of a batch were leased: it keeps a batch while its keys may be
/// leased, and one that was leased for longer than its keys may be handed out.
pub fn leases_show_until(created_at: Timestamp, expires_at: Timestamp) -> Timestamp {
    hand_out_until(created_at, expires_at, created_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_was_leased_is_kept_for_longer_than_a_void_looks_for_it() {
        let created_at = Timestamp::from_ms(0);
        for ttl in [Duration::from_secs(2), Duration::from_mins(2), Duration::from_hours(24)] {
            let expires_at = created_at.plus(ttl);
            let until = leases_show_until(created_at, expires_at);
            // Leased at once, or just before the void looks.
            for leased_at in [created_at, until.minus(Duration::from_millis(1))] {
                let handed_out = hand_out_until(created_at, expires_at, leased_at);
                let copies_end = copy_ends_at(handed_out, Duration::from_millis(1));
                assert!(kept_until(false, expires_at, None, Some(copies_end)) > until, "{ttl:?}");
            }
            assert!(kept_until(false, expires_at, Some(usable_until(created_at, expires_at)), None) >= until);
        }
    }

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
        let erasure = |others_until, terms| erasure(others_until, at(50), terms, at(5));
        assert_eq!(erasure(Some(at(50)), ONCE), Erasure::Keep);
        assert_eq!(erasure(None, ONCE), Erasure::Now);
        assert_eq!(erasure(None, WINDOW), Erasure::At(at(15)));
        assert_eq!(erasure(None, ALWAYS), Erasure::Keep);
    }

    #[test]
    fn material_that_only_a_master_may_still_retrieve_goes_when_its_copy_ends() {
        let erasure = |others_until, terms| erasure(Some(others_until), at(50), terms, at(5));
        assert_eq!(erasure(at(20), ONCE), Erasure::At(at(20)));
        assert_eq!(erasure(at(12), WINDOW), Erasure::At(at(15)), "its window is longer");
        assert_eq!(erasure(at(20), ALWAYS), Erasure::Keep);
    }

    #[test]
    fn a_key_is_handed_out_in_the_first_half_of_its_life_and_soon_after_its_lease() {
        let life = 4 * i64::try_from(HOLD.as_millis()).unwrap();
        let hold = life / 4;
        assert_eq!(hand_out_until(at(0), at(life), at(1)), at(hold + 1));
        assert_eq!(hand_out_until(at(0), at(life), at(2 * hold - 1)), at(2 * hold), "half of its life");
        assert!(is_live(at(200), at(199)));
        assert!(!is_live(at(200), at(200)));
    }

    #[test]
    fn a_copy_ends_for_the_master_alone_and_never_after_the_key() {
        let ends = Some(copy_ends_at(at(10), Duration::from_millis(5)));
        assert_eq!(retrievable_until(Role::Master, at(50), ends), at(15));
        assert_eq!(retrievable_until(Role::Slave, at(50), ends), at(50));
        assert_eq!(retrievable_until(Role::Master, at(12), ends), at(12));
        assert_eq!(retrievable_until(Role::Master, at(50), None), at(50), "a record of an older release");
    }

    #[test]
    fn a_batch_is_kept_while_somebody_may_ask_for_its_keys() {
        let (ready, copy, expires) = (at(25), at(15), at(50));
        assert_eq!(kept_until(true, expires, Some(ready), Some(copy)), expires);
        assert_eq!(kept_until(false, expires, Some(ready), None), ready, "never leased");
        assert_eq!(kept_until(false, expires, None, Some(copy)), copy, "leased");
        assert_eq!(kept_until(false, expires, Some(ready), Some(copy)), ready, "some were given back");
        assert_eq!(kept_until(false, expires, None, None), expires);
        assert_eq!(kept_until(false, at(12), None, Some(copy)), at(12));
    }
}
