//! Storing batches.

use kme::life::{self, Known};
use kme::{Key, KeyId, Timestamp};

use super::locks::Needs;
use super::rows::{self, Found};
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::{Header, NewRecord, Ready, Record, State, check_keys};
use crate::store::sealing::Sealer;
use crate::store::types::{Inserted, NewBatch};

/// Most batches of one insert.
pub const MAX_BATCHES_PER_INSERT: usize = 16;
/// Most records whose key IDs begin with the same bytes. By chance there are hardly ever two. But a retrieval
/// reads all of them, and a peer that chose the bytes on purpose would make one request read its whole store.
const RECORDS_PER_PREFIX: usize = 8;

/// Stores batches, which are sealed already: all of them or none.
pub(crate) struct Insert(Vec<NewRecord>);

/// The tombstones of some batches: batch and source.
type Tombstones = [(Vec<u8>, String)];

impl Insert {
    /// Checks and seals `batches`. With `ready`, their keys may be leased.
    pub(crate) fn new(
        batches: &[NewBatch<'_>],
        ready: Option<&Ready>,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let seal = |batch: &NewBatch<'_>| {
            let mut keys: Vec<&Key> = batch.keys.iter().collect();
            let (key_ids, key_bytes) = check_keys(&mut keys)?;
            let mut state = State::fresh(keys.len(), ready.cloned());
            if let Some(end) = batch.copy_ends_at {
                state.keep_copies_until(end);
            }
            let header = Header::of(batch, key_ids, key_bytes);
            let keys = keys.into_iter().map(Some);
            Record::seal(batch.batch_id, header, state, keys, sealer, now)
        };
        if batches.is_empty() || batches.len() > MAX_BATCHES_PER_INSERT {
            return Err(StoreError::Misuse("no batch, or too many, in one insert"));
        }
        batches.iter().map(seal).collect::<Result<_, _>>().map(Self)
    }

    /// Adds to `needs` what must be locked for these batches.
    pub(super) fn needs(&self, needs: &mut Needs) {
        for NewRecord { record, .. } in &self.0 {
            needs.new_batch(record.batch_id, record.header.prefix());
        }
    }

    /// Stores them unless the rule for pushes forbids one of them.
    pub(super) async fn carry_out(&self, link: &mut Link, sealer: &Sealer) -> Result<Inserted, StoreError> {
        let met = rows::met_by(link, sealer, &self.0).await?;
        let met = met.into_iter().map(Found::sound).collect::<Result<Vec<_>, _>>()?;
        let tombstones = rows::tombstones(link, &self.0).await?;
        let (mut others, mut fresh) = (met.iter().collect::<Vec<_>>(), Vec::with_capacity(self.0.len()));
        for new in &self.0 {
            match life::push(known(&new.record, &others, &tombstones)) {
                Inserted::Stored => fresh.push(new),
                Inserted::AlreadyStored => {}
                refused => return Ok(refused),
            }
            others.push(&new.record);
        }
        if fresh.is_empty() {
            return Ok(Inserted::AlreadyStored);
        }
        rows::insert(link, sealer, &fresh).await?;
        Ok(Inserted::Stored)
    }
}

/// What this site knows of a new batch. `others` are the records that may have its ID or its prefix.
fn known(new: &Record, others: &[&Record], tombstones: &Tombstones) -> Known {
    if let Some(known) = others.iter().find(|record| record.batch_id == new.batch_id) {
        let same_content =
            known.header.source == new.header.source && known.header.content == new.header.content;
        return Known::Batch { same_content, voided: known.state.voided };
    }
    let id: &[u8] = new.batch_id.as_bytes();
    if tombstones.iter().any(|(batch, source)| batch == id && *source == new.header.source.as_str()) {
        return Known::Tombstone;
    }
    let prefix = new.header.prefix();
    let alike = || others.iter().filter(|other| other.header.prefix() == prefix);
    let is_in_use = |id: &KeyId| alike().any(|other| other.slot_of(*id).is_some());
    if alike().count() >= RECORDS_PER_PREFIX || new.header.key_ids.iter().any(is_in_use) {
        return Known::KeyIdsInUse;
    }
    Known::Unknown
}

impl Verb for Insert {
    type Output = Inserted;
    const NAME: &'static str = "insert";

    fn key_count(&self) -> usize {
        self.0.iter().map(|new| new.record.header.key_ids.len()).sum()
    }

    /// Keeps others from storing or voiding these batches, so what [`Self::carry_out`] finds still holds at the
    /// write.
    fn lock(&self, needs: &mut Needs) {
        self.needs(needs);
    }

    async fn run(&self, link: &mut Link, sealer: &Sealer, _: Timestamp) -> Result<Inserted, StoreError> {
        self.carry_out(link, sealer).await
    }

    fn is_change(inserted: &Inserted) -> bool {
        *inserted == Inserted::Stored
    }
}
