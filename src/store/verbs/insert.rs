//! Storing a batch.

use kme::life::{self, Known};
use kme::{Key, KeyId, Timestamp};

use super::locks::Needs;
use super::rows::{self, Found};
use super::sql;
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::{Header, NewRecord, Ready, Record, State, check_keys};
use crate::store::sealing::Sealer;
use crate::store::types::{Inserted, NewBatch};

/// Most records whose key IDs begin with the same bytes. A retrieval reads all of them, so a peer that chooses them
/// on purpose must not make one request read its whole store. By chance there are hardly ever two.
const RECORDS_PER_PREFIX: usize = 8;

/// Stores a batch, which is sealed already.
pub(crate) struct Insert(NewRecord);

impl Insert {
    /// Checks and seals `batch`. With `ready`, its keys may be leased.
    pub(crate) fn new(
        batch: &NewBatch<'_>,
        ready: Option<Ready>,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut keys: Vec<&Key> = batch.keys.iter().collect();
        let (key_ids, key_bytes) = check_keys(&mut keys)?;
        let mut state = State::fresh(keys.len(), ready);
        if let Some(end) = batch.copy_ends_at {
            state.keep_copies_until(end);
        }
        let header = Header::of(batch, key_ids, key_bytes);
        let keys = keys.into_iter().map(Some);
        Record::seal(batch.batch_id, header, state, keys, sealer, now).map(Self)
    }

    async fn known(&self, link: &mut Link, sealer: &Sealer) -> Result<Known, StoreError> {
        let new = &self.0.record;
        let met = rows::met_by(link, sealer, new.batch_id, new.header.prefix()).await?;
        let met = met.into_iter().map(Found::sound).collect::<Result<Vec<_>, _>>()?;
        if let Some(known) = met.iter().find(|record| record.batch_id == new.batch_id) {
            let same_content =
                known.header.source == new.header.source && known.header.content == new.header.content;
            return Ok(Known::Batch { same_content, voided: known.state.voided });
        }
        let tombstones: i64 = sqlx::query_scalar(link.text(sql::TOMBSTONE))
            .bind(new.batch_id.as_bytes().as_slice())
            .bind(new.header.source.as_str())
            .fetch_one(&mut **link)
            .await?;
        if tombstones > 0 {
            return Ok(Known::Tombstone);
        }
        let is_in_use = |id: &KeyId| met.iter().any(|other| other.slot_of(*id).is_some());
        if met.len() >= RECORDS_PER_PREFIX || new.header.key_ids.iter().any(is_in_use) {
            return Ok(Known::KeyIdsInUse);
        }
        Ok(Known::Unknown)
    }

    /// Adds what this brings to `needs`.
    pub(super) fn needs(&self, needs: &mut Needs) {
        let Self(NewRecord { record, .. }) = self;
        needs.new_batch(record.batch_id, record.header.prefix());
    }

    /// Stores it unless the rule for pushes forbids it.
    pub(super) async fn carry_out(&self, link: &mut Link, sealer: &Sealer) -> Result<Inserted, StoreError> {
        let inserted = life::push(self.known(link, sealer).await?);
        if inserted == Inserted::Stored {
            rows::insert(link, sealer, &self.0).await?;
        }
        Ok(inserted)
    }
}

impl Verb for Insert {
    type Output = Inserted;
    const NAME: &'static str = "insert";

    fn key_count(&self) -> usize {
        self.0.record.header.key_ids.len()
    }

    /// Keeps others from storing or voiding this batch, so what [`Self::known`] finds still holds at the
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
