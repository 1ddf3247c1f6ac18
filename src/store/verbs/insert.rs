//! Storing a batch.

use std::sync::Arc;

use kme::Timestamp;
use kme::life::{self, Known};

use super::batch_cache::BatchFacts;
use super::ids::are_distinct;
use super::locks::Needs;
use super::ready::ReadyRow;
use super::sql;
use super::verb::{AfterCommit, Verb};
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::{SealedKeys, Sealer};
use crate::store::types::{Inserted, NewBatch};

/// Most keys that a stored batch may have: its row lists all their IDs.
pub(super) const MAX_STORED_BATCH_KEYS: usize = 65_536;

/// Stores a batch, which is sealed already.
pub(crate) struct Insert {
    facts: Arc<BatchFacts>,
    key_bytes: usize,
    content: [u8; 32],
    created_at: Timestamp,
    keys: SealedKeys,
    ready: Option<ReadyRow>,
}

impl Insert {
    /// Checks and seals `batch`. With `ready`, its keys are also listed as ready.
    pub(crate) fn new(
        batch: &NewBatch<'_>,
        ready: Option<ReadyRow>,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let key_bytes = check(batch)?;
        let keys = sealer.seal(batch.batch_id, batch.keys, now)?;
        let facts = Arc::new(BatchFacts {
            batch_id: batch.batch_id,
            source: batch.source.clone(),
            master: batch.master.clone(),
            recipients: batch.recipients.to_vec(),
            entitled: batch.entitled.to_vec(),
            data_key_id: keys.data_key.id,
            expires_at: batch.expires_at,
        });
        Ok(Self { facts, key_bytes, content: batch.content.0, created_at: batch.created_at, keys, ready })
    }

    async fn known(&self, link: &mut Link) -> Result<Known, StoreError> {
        let id: &[u8] = self.facts.batch_id.as_bytes();
        let known: Option<(String, Vec<u8>, String, Vec<u8>)> =
            sqlx::query_as(link.text(sql::BATCH)).bind(id).fetch_optional(&mut **link).await?;
        if let Some((source, content, state, _)) = known {
            let same_content = source == self.facts.source.as_str() && content == self.content;
            return Ok(Known::Batch { same_content, voided: state == "voided" });
        }
        let tombstones: i64 = sqlx::query_scalar(link.text(sql::TOMBSTONE))
            .bind(id)
            .bind(self.facts.source.as_str())
            .fetch_one(&mut **link)
            .await?;
        if tombstones > 0 {
            return Ok(Known::Tombstone);
        }
        let in_use: i64 = sqlx::query_scalar(link.text(sql::KEYS_IN_USE))
            .bind(self.keys.key_ids.as_slice())
            .fetch_one(&mut **link)
            .await?;
        Ok(if in_use > 0 { Known::KeyIdsInUse } else { Known::Unknown })
    }

    async fn write(&self, link: &mut Link) -> Result<(), StoreError> {
        let (facts, data_key) = (&self.facts, &self.keys.data_key);
        let json = |text: Result<String, serde_json::Error>| {
            text.map_err(|_| StoreError::Misuse("parties that cannot be JSON"))
        };
        // With every batch: the sweep of another process may have erased it as unused.
        sqlx::query(link.text(sql::INSERT_DATA_KEY))
            .bind(data_key.id.as_slice())
            .bind(data_key.kek_id.as_str())
            .bind(data_key.wrapped.as_slice())
            .bind(data_key.created_at.as_ms())
            .execute(&mut **link)
            .await?;
        sqlx::query(link.text(sql::INSERT_BATCH))
            .bind(facts.batch_id.as_bytes().as_slice())
            .bind(facts.source.as_str())
            .bind(facts.master.as_str())
            .bind(json(serde_json::to_string(&facts.recipients))?)
            .bind(json(serde_json::to_string(&facts.entitled))?)
            .bind(length(self.key_bytes)?)
            .bind(self.keys.key_ids.as_slice())
            .bind(data_key.id.as_slice())
            .bind(self.content.as_slice())
            .bind(self.created_at.as_ms())
            .bind(facts.expires_at.as_ms())
            .execute(&mut **link)
            .await?;
        sqlx::query(link.text(sql::INSERT_KEYS))
            .bind(self.keys.key_ids.as_slice())
            .bind(facts.batch_id.as_bytes().as_slice())
            .bind(self.keys.sealed.as_slice())
            .bind(length(self.keys.sealed_bytes)?)
            .execute(&mut **link)
            .await?;
        if let Some(ready) = &self.ready {
            ready.write(link, facts.batch_id, &self.keys.key_ids, Some(&self.keys.sealed)).await?;
        }
        Ok(())
    }
}

impl Verb for Insert {
    type Output = Inserted;
    const NAME: &'static str = "insert";

    fn key_count(&self) -> usize {
        self.keys.key_ids.len() / 16
    }

    /// Keeps others from storing or voiding this batch, so what [`Self::known`] finds still holds at the
    /// write.
    fn lock(&self, needs: &mut Needs) {
        needs.batch(self.facts.batch_id);
    }

    async fn run(&self, link: &mut Link, _: &Sealer, _: Timestamp) -> Result<Inserted, StoreError> {
        let inserted = life::push(self.known(link).await?);
        if inserted == Inserted::Stored {
            self.write(link).await?;
        }
        Ok(inserted)
    }

    fn is_change(inserted: &Inserted) -> bool {
        *inserted == Inserted::Stored
    }

    fn after_commit(&self, inserted: &Inserted) -> AfterCommit {
        match inserted {
            Inserted::Stored => AfterCommit::Cache(Arc::clone(&self.facts)),
            _ => AfterCommit::Nothing,
        }
    }
}

/// Returns the length of the keys in bytes.
fn check(batch: &NewBatch<'_>) -> Result<usize, StoreError> {
    let Some(first) = batch.keys.first() else {
        return Err(StoreError::Misuse("a batch without keys"));
    };
    let key_bytes = first.material.len_bytes();
    if batch.keys.len() > MAX_STORED_BATCH_KEYS {
        return Err(StoreError::Misuse("too many keys in one batch"));
    }
    if key_bytes == 0 || batch.keys.iter().any(|key| key.material.len_bytes() != key_bytes) {
        return Err(StoreError::Misuse("the keys of a batch must have one length, of at least a byte"));
    }
    if !are_distinct(batch.keys.iter().map(|key| key.id)) {
        return Err(StoreError::Misuse("a key ID twice in one batch"));
    }
    Ok(key_bytes)
}

fn length(bytes: usize) -> Result<i64, StoreError> {
    i64::try_from(bytes).map_err(|_| StoreError::Misuse("a key too long"))
}
