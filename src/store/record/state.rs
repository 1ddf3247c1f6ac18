//! What changes in a record: which keys are ready, retrieved, voided.
//!
//! The bytes, before their MAC: version, whether the batch is voided, a byte for each key; then, if there is any
//! of it, the rest as JSON. So most retrievals change a byte and the MAC, and no length.

use kme::{SaeId, SourceGrade, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::error::StoreError;
use crate::store::sealing::MAC_BYTES;

const VERSION: u8 = 1;

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// Its slot has it, and `enc_keys` may hand it out.
    Ready,
    /// Its slot has it. It may be leased, and some parties may have retrieved it.
    Stored,
    /// Its source voided it.
    Voided,
    /// Everybody who may retrieve it has, or a lease took it and nobody may.
    Gone,
}

impl KeyState {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Ready => b'r',
            Self::Stored => b's',
            Self::Voided => b'v',
            Self::Gone => b'g',
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'r' => Some(Self::Ready),
            b's' => Some(Self::Stored),
            b'v' => Some(Self::Voided),
            b'g' => Some(Self::Gone),
            _ => None,
        }
    }

    /// Whether the slot has the key.
    pub(crate) const fn has_material(self) -> bool {
        matches!(self, Self::Ready | Self::Stored)
    }
}

/// A retrieval of a key that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    slot: usize,
    /// Number of the party in the header's list of entitlements.
    pub(crate) party: usize,
    /// The SAE that asked.
    pub(crate) by: SaeId,
    at_ms: i64,
}

impl Use {
    pub(crate) fn at(&self) -> Timestamp {
        Timestamp::from_ms(self.at_ms)
    }
}

/// On what terms the ready keys are handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    until_ms: i64,
    pub(crate) grade: SourceGrade,
}

impl Ready {
    pub(crate) fn new(until: Timestamp, grade: SourceGrade) -> Self {
        Self { until_ms: until.as_ms(), grade }
    }

    /// From then on they are not handed out.
    pub(crate) fn until(&self) -> Timestamp {
        Timestamp::from_ms(self.until_ms)
    }
}

/// A key that is erased when its time has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Due {
    slot: usize,
    at_ms: i64,
}

/// The state of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Its source voided the batch as a whole.
    pub(crate) voided: bool,
    keys: Vec<KeyState>,
    more: More,
}

/// What most states have nothing of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct More {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    uses: Vec<Use>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    due: Vec<Due>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ready: Option<Ready>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy_ends_ms: Option<i64>,
}

impl State {
    /// The state of `keys` fresh keys. With `ready`, all are ready on these terms.
    pub(crate) fn fresh(keys: usize, ready: Option<Ready>) -> Self {
        let of_each = if ready.is_some() { KeyState::Ready } else { KeyState::Stored };
        Self { voided: false, keys: vec![of_each; keys], more: More { ready, ..More::default() } }
    }

    /// When the master's copies at its own site end; `None`: when the keys expire.
    pub(crate) fn copy_ends_at(&self) -> Option<Timestamp> {
        self.more.copy_ends_ms.map(Timestamp::from_ms)
    }

    /// Keeps all of the master's copies at least until `end`.
    pub(crate) fn keep_copies_until(&mut self, end: Timestamp) {
        self.more.copy_ends_ms = self.more.copy_ends_ms.max(Some(end.as_ms()));
    }

    /// Fixes the end of the copies of keys that are neither ready nor erased: no later lease prolongs them.
    pub(crate) fn fix_copies(&mut self) {
        let Some(end) = self.copy_ends_at() else { return };
        let stored = self.keys.iter().enumerate().filter(|(_, key)| **key == KeyState::Stored);
        let slots: Vec<usize> = stored.map(|(slot, _)| slot).collect();
        for slot in slots {
            if self.more.due.iter().all(|due| due.slot != slot) {
                self.erase_at(slot, end);
            }
        }
    }

    /// A slot that does not exist is gone.
    pub(crate) fn of(&self, slot: usize) -> KeyState {
        self.keys.get(slot).copied().unwrap_or(KeyState::Gone)
    }

    /// Changes the state of a key. Forgets what no longer matters if its material goes.
    pub(crate) fn set(&mut self, slot: usize, state: KeyState) {
        if let Some(key) = self.keys.get_mut(slot) {
            *key = state;
        }
        if state == KeyState::Gone {
            self.more.uses.retain(|used| used.slot != slot);
        }
        if !state.has_material() {
            self.more.due.retain(|due| due.slot != slot);
        }
        if self.more.ready.is_some() && !self.keys.contains(&KeyState::Ready) {
            self.more.ready = None;
        }
    }

    pub(crate) fn has_material(&self) -> bool {
        self.keys.iter().any(|key| key.has_material())
    }

    /// The retrievals of a key that stays.
    pub(crate) fn uses(&self, slot: usize) -> impl Iterator<Item = &Use> {
        self.more.uses.iter().filter(move |used| used.slot == slot)
    }

    /// Notes that `by` used the retrieval of a party. The key is not ready any more.
    pub(crate) fn note_use(&mut self, slot: usize, party: usize, by: SaeId, at: Timestamp) {
        self.more.uses.push(Use { slot, party, by, at_ms: at.as_ms() });
        if self.of(slot) == KeyState::Ready {
            self.set(slot, KeyState::Stored);
        }
    }

    /// Notes that a key is to be erased from `at` on.
    pub(crate) fn erase_at(&mut self, slot: usize, at: Timestamp) {
        self.more.due.retain(|due| due.slot != slot);
        self.more.due.push(Due { slot, at_ms: at.as_ms() });
    }

    /// Whether a key is to be erased by now.
    pub(crate) fn is_due(&self, slot: usize, now: Timestamp) -> bool {
        self.more.due.iter().any(|due| due.slot == slot && due.at_ms <= now.as_ms())
    }

    /// The slots that are to be erased by now.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<usize> {
        self.more.due.iter().filter(|due| due.at_ms <= now.as_ms()).map(|due| due.slot).collect()
    }

    /// When the first key is to be erased.
    pub(crate) fn first_due(&self) -> Option<Timestamp> {
        self.more.due.iter().map(|due| Timestamp::from_ms(due.at_ms)).min()
    }

    /// The terms of the ready keys, if there are any.
    pub(crate) fn ready(&self) -> Option<&Ready> {
        self.more.ready.as_ref()
    }

    /// The slots of the ready keys.
    pub(crate) fn ready_slots(&self) -> Vec<usize> {
        let slots = self.keys.iter().enumerate();
        slots.filter(|(_, key)| **key == KeyState::Ready).map(|(slot, _)| slot).collect()
    }

    /// Makes keys ready that the slots have. Those that somebody has retrieved stay as they are.
    pub(crate) fn make_ready(&mut self, slots: &[usize], terms: &Ready) {
        for slot in slots {
            let used = self.uses(*slot).next().is_some();
            if let Some(key) = self.keys.get_mut(*slot)
                && *key == KeyState::Stored
                && !used
            {
                *key = KeyState::Ready;
                self.more.ready.get_or_insert_with(|| terms.clone());
            }
        }
    }

    /// Makes no key ready any more.
    pub(crate) fn withdraw_ready(&mut self) {
        for key in self.keys.iter_mut().filter(|key| **key == KeyState::Ready) {
            *key = KeyState::Stored;
        }
        self.more.ready = None;
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![VERSION, u8::from(self.voided)];
        bytes.extend(self.keys.iter().map(|key| key.to_byte()));
        if self.more != More::default() {
            serde_json::to_writer(&mut bytes, &self.more)
                .map_err(|_| StoreError::Misuse("a state that cannot be JSON"))?;
        }
        Ok(bytes)
    }

    /// `None`: not for `keys` keys, or of a version that this program does not know.
    pub(super) fn from_bytes(bytes: &[u8], keys: usize) -> Option<Self> {
        let ([VERSION, voided], bytes) = bytes.split_first_chunk()? else { return None };
        let (states, more) = bytes.split_at_checked(keys)?;
        Some(Self {
            voided: *voided != 0,
            keys: states.iter().map(|byte| KeyState::from_byte(*byte)).collect::<Option<_>>()?,
            more: if more.is_empty() { More::default() } else { serde_json::from_slice(more).ok()? },
        })
    }
}

/// How many of `keys` keys are left, by a state as it is stored. For sums alone: the MAC is not checked.
pub(crate) fn keys_left(protected: &[u8], keys: u64) -> u64 {
    let states = protected.iter().skip(MAC_BYTES + 2).take(usize::try_from(keys).unwrap_or(usize::MAX));
    states.filter(|byte| KeyState::from_byte(**byte).is_some_and(KeyState::has_material)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn terms() -> Ready {
        let grade = SourceGrade { entropy_sources: ["os".to_owned()].into(), pools: 3, hybrid_tls: true };
        Ready::new(at(9), grade)
    }

    fn comes_back(state: &State) {
        let bytes = state.to_bytes().unwrap();
        assert_eq!(State::from_bytes(&bytes, state.keys.len()).unwrap(), *state);
        assert!(State::from_bytes(&bytes, state.keys.len() + 1).is_none_or(|other| other != *state));
    }

    #[test]
    fn a_state_comes_back_as_it_was_and_of_another_version_not_at_all() {
        let mut state = State::fresh(4, Some(terms()));
        comes_back(&state);
        state.set(0, KeyState::Gone);
        state.set(1, KeyState::Voided);
        state.note_use(2, 1, "bob".parse().unwrap(), at(7));
        state.erase_at(2, at(70));
        state.voided = true;
        comes_back(&state);
        let mut bytes = state.to_bytes().unwrap();
        bytes[0] += 1;
        assert!(State::from_bytes(&bytes, 4).is_none());
        let unknown = [VERSION, 0, b'?'];
        assert!(State::from_bytes(&unknown, 1).is_none() && State::from_bytes(&[VERSION], 0).is_none());
    }

    #[test]
    fn a_retrieval_that_erases_a_key_changes_no_length() {
        let mut state = State::fresh(64, None);
        let before = state.to_bytes().unwrap().len();
        state.set(7, KeyState::Gone);
        assert_eq!(state.to_bytes().unwrap().len(), before);
    }

    #[test]
    fn what_somebody_retrieved_is_ready_no_more_and_the_terms_go_with_the_last_ready_key() {
        let mut state = State::fresh(3, Some(terms()));
        state.note_use(0, 0, "alice".parse().unwrap(), at(1));
        assert_eq!(state.ready_slots(), [1, 2]);
        state.withdraw_ready();
        assert!(state.ready().is_none());
        state.set(1, KeyState::Voided);
        state.make_ready(&[0, 1, 2], &terms());
        assert_eq!(state.ready_slots(), [2], "neither the retrieved nor the voided one");
        state.set(2, KeyState::Gone);
        assert!(state.ready().is_none());
    }

    #[test]
    fn copies_end_with_the_keys_until_something_else_is_said_and_then_only_later() {
        let mut state = State::fresh(1, None);
        assert_eq!(state.copy_ends_at(), None);
        for (end, expected) in [(20, 20), (10, 20), (30, 30)] {
            state.keep_copies_until(at(end));
            assert_eq!(state.copy_ends_at(), Some(at(expected)));
            comes_back(&state);
        }
    }

    #[test]
    fn a_key_is_due_once_and_not_after_it_is_gone() {
        let mut state = State::fresh(2, None);
        state.erase_at(0, at(10));
        state.erase_at(1, at(5));
        state.erase_at(0, at(12));
        assert_eq!((state.first_due(), state.due(at(11))), (Some(at(5)), vec![1]));
        assert!(state.is_due(1, at(5)) && !state.is_due(0, at(11)));
        state.set(1, KeyState::Gone);
        assert_eq!(state.first_due(), Some(at(12)));
    }
}
