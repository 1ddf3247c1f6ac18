//! A batch at rest: one record with a sealed header that never changes, a small authenticated state, and a
//! sealed slot for each key. Knows nothing of SQL.
//!
//! What a record says is decided by its header and state alone. The other columns of its row only help to find
//! it.

mod header;
mod state;

use std::sync::Arc;

use kme::life;
use kme::{BatchId, Key, KeyId, Recipient, Timestamp};

pub(crate) use self::header::{Header, MAX_KEYS, Prefix, batch_id, check_keys, prefix_of};
pub(crate) use self::state::{KeyState, Ready, State, keys_left};
use super::error::StoreError;
use super::sealing::{DataKey, RecordSeal, Sealer, TAG_BYTES};
use super::types::Entitlement;

/// The table of records, for errors.
pub(crate) const TABLE: &str = "records";

/// An opened record.
pub(crate) struct Record {
    pub(crate) batch_id: BatchId,
    pub(crate) header: Header,
    pub(crate) state: State,
    /// All slots, each a sealed key or zeros; empty once every key is gone.
    slots: Vec<u8>,
    seal: RecordSeal,
    before: Listed,
}

/// Columns that follow from header and state, by which other statements find the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// While it has ready keys: whom they are shared with, as JSON.
    pub(crate) recipient: Option<String>,
    pub(crate) ready_keys: usize,
    pub(crate) ready_until: Option<Timestamp>,
    pub(crate) erase_at: Option<Timestamp>,
    /// When the sweep takes it.
    pub(crate) kept_until: Timestamp,
}

impl Listed {
    fn of(header: &Header, state: &State) -> Result<Self, StoreError> {
        let recipient = match (state.ready(), header.recipients.as_slice()) {
            (Some(_), [recipient]) => Some(recipient_text(recipient)?),
            _ => None,
        };
        let ready_until = state.ready().filter(|_| recipient.is_some()).map(Ready::until);
        let ready_keys = ready_until.map_or(0, |_| state.ready_slots().len());
        let (erase_at, kept_until) = (state.first_due(), kept_until(header, state));
        Ok(Self { recipient, ready_keys, ready_until, erase_at, kept_until })
    }
}

/// What its source voided stays until it expires, so that it does not come back.
fn kept_until(header: &Header, state: &State) -> Timestamp {
    if state.voided {
        return header.expires_at;
    }
    life::kept_until(
        header.has_slaves(),
        header.expires_at,
        state.ready().map(Ready::until),
        state.copy_ends_at(),
    )
}

/// A recipient as the column has it.
pub(crate) fn recipient_text(recipient: &Recipient) -> Result<String, StoreError> {
    serde_json::to_string(recipient).map_err(|_| StoreError::Misuse("a recipient that cannot be JSON"))
}

/// A record that was just sealed, and what it was sealed with.
pub(crate) struct NewRecord {
    pub(crate) record: Record,
    pub(crate) sealed_header: Vec<u8>,
    pub(crate) data_key: Arc<DataKey>,
}

impl Record {
    /// Seals a new record. `keys` are in the order of the header's IDs; a key that is missing leaves its slot
    /// empty.
    pub(crate) fn seal<'a>(
        batch_id: BatchId,
        header: Header,
        state: State,
        keys: impl ExactSizeIterator<Item = Option<&'a Key>>,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<NewRecord, StoreError> {
        let (data_key, sealed_header, seal) =
            sealer.begin(batch_id, &header.to_bytes()?, header.key_ids.len(), now)?;
        let slot_bytes = header.key_bytes + TAG_BYTES;
        // Full length from the start: growing would leave a copy of a key behind.
        let mut slots = Vec::with_capacity(slot_bytes * keys.len());
        for (slot, key) in (0..).zip(keys) {
            match key {
                Some(key) => seal.seal(slot, key, &mut slots)?,
                None => slots.resize(slots.len() + slot_bytes, 0),
            }
        }
        let before = Listed::of(&header, &state)?;
        let record = Self { batch_id, header, state, slots, seal, before };
        Ok(NewRecord { record, sealed_header, data_key })
    }

    /// Opens a record. `Ok(None)`: it is not what was sealed under this batch ID.
    pub(crate) fn open(
        batch_id: BatchId,
        data_key_id: &[u8],
        sealed_header: &[u8],
        protected_state: &[u8],
        slots: Vec<u8>,
        sealer: &Sealer,
    ) -> Result<Option<Self>, StoreError> {
        let Ok(data_key_id) = data_key_id.try_into() else { return Ok(None) };
        let Some((header, seal)) = sealer.open(&data_key_id, batch_id, sealed_header)? else {
            return Ok(None);
        };
        let (Some(header), Some(state)) = (Header::from_bytes(&header), seal.state(protected_state)) else {
            return Ok(None);
        };
        let Some(state) = State::from_bytes(state, header.key_ids.len()) else { return Ok(None) };
        let before = Listed::of(&header, &state)?;
        Ok(Some(Self { batch_id, header, state, slots, seal, before }))
    }

    /// Until when `party`, which is in the header's list of entitlements, may retrieve the keys.
    pub(crate) fn retrievable_until(&self, party: &Entitlement) -> Timestamp {
        life::retrievable_until(party.role, self.header.expires_at, self.state.copy_ends_at())
    }

    /// The number of the slot of a key.
    pub(crate) fn slot_of(&self, id: KeyId) -> Option<usize> {
        self.header.key_ids.binary_search(&id).ok()
    }

    /// The key in a slot. `Ok(None)`: the slot does not have what was sealed there.
    pub(crate) fn key(&self, slot: usize) -> Result<Option<Key>, StoreError> {
        let id = self.header.key_ids.get(slot);
        let (Some(id), Ok(number)) = (id, u32::try_from(slot)) else { return Ok(None) };
        let sealed = self.slots.chunks_exact(self.slot_bytes()).nth(slot).unwrap_or_default();
        Ok(self.seal.open(number, *id, sealed)?)
    }

    /// Erases a key, which is in `after` from then on.
    pub(crate) fn erase(&mut self, slot: usize, after: KeyState) {
        self.state.set(slot, after);
        let slot_bytes = self.slot_bytes();
        if let Some(sealed) = self.slots.chunks_exact_mut(slot_bytes).nth(slot) {
            sealed.fill(0);
        }
    }

    /// Puts a key back that a lease took out of the record.
    pub(crate) fn restore(&mut self, slot: usize, key: &Key) -> Result<(), StoreError> {
        let slot_bytes = self.slot_bytes();
        self.slots.resize(slot_bytes * self.header.key_ids.len(), 0);
        let mut sealed = Vec::with_capacity(slot_bytes);
        let number = u32::try_from(slot).map_err(|_| StoreError::Misuse("a slot that does not exist"))?;
        self.seal.seal(number, key, &mut sealed)?;
        match self.slots.chunks_exact_mut(slot_bytes).nth(slot) {
            Some(place) if place.len() == sealed.len() => place.copy_from_slice(&sealed),
            _ => return Err(StoreError::Misuse("a key of another length than its batch")),
        }
        self.state.set(slot, KeyState::Stored);
        Ok(())
    }

    /// The state as it is stored.
    pub(crate) fn protected_state(&self) -> Result<Vec<u8>, StoreError> {
        Ok(self.seal.protect(&self.state.to_bytes()?))
    }

    /// The slots as they are stored. Once no key is left, they need no room.
    pub(crate) fn slots(&self) -> &[u8] {
        if self.state.has_material() { &self.slots } else { &[] }
    }

    /// What the row says beside the seals.
    pub(crate) fn listed(&self) -> Result<Listed, StoreError> {
        Listed::of(&self.header, &self.state)
    }

    /// Whether the row says the same as when it was read.
    pub(crate) fn is_listed_as_before(&self) -> Result<bool, StoreError> {
        Ok(self.before == self.listed()?)
    }

    fn slot_bytes(&self) -> usize {
        self.header.key_bytes + TAG_BYTES
    }
}
