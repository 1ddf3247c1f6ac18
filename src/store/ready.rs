//! Keys made ahead of demand: marked ready, leased by a daemon, given back, within the writer's transaction.
//!
//! A lease is the deletion of the row that lists the keys. It is committed before the keys reach the daemon's
//! memory, so after a crash nothing can hand them out again; at most they are lost to `enc_keys`.

use kme::{BatchId, Key, KeyId, Provenance, SourceGrade, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;
use tracing::error;

use super::dialect::Link;
use super::error::StoreError;
use super::retrieve::{array, learn_data_key};
use super::seal::{DataKeyId, Sealer};
use super::types::{LeasedBlock, ReadyPair};
use super::{pack, sql, unpack};

/// The pair in the form of its columns.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PairText {
    master: String,
    recipient: String,
}

impl PairText {
    pub(super) fn of(pair: ReadyPair<'_>) -> Result<Self, StoreError> {
        let recipient = serde_json::to_string(pair.recipient)
            .map_err(|_| StoreError::Misuse("a recipient that is no JSON"))?;
        Ok(Self { master: pair.master.to_string(), recipient })
    }

    /// Keys that are ready for the pair at `now`, in all blocks.
    pub(super) async fn count(&self, link: &mut Link, now: Timestamp) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(link.text(sql::COUNT_READY))
            .bind(self.master.as_str())
            .bind(self.recipient.as_str())
            .bind(now.as_ms())
            .fetch_one(&mut **link)
            .await?;
        Ok(count.unsigned_abs())
    }
}

/// A block to be marked ready.
pub(super) struct ReadyRow {
    pub(super) pair: PairText,
    pub(super) grade: String,
    pub(super) usable_until: Timestamp,
}

impl ReadyRow {
    pub(super) fn new(
        pair: ReadyPair<'_>,
        grade: &SourceGrade,
        usable_until: Timestamp,
    ) -> Result<Self, StoreError> {
        let grade =
            serde_json::to_string(grade).map_err(|_| StoreError::Misuse("a grade that is no JSON"))?;
        Ok(Self { pair: PairText::of(pair)?, grade, usable_until })
    }

    /// Lists `key_ids` of a stored batch as ready, with all of them `sealed` or without. Does nothing for a batch that
    /// was voided meanwhile.
    pub(super) async fn write(
        &self,
        link: &mut Link,
        batch_id: BatchId,
        key_ids: &[u8],
        sealed: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        sqlx::query(link.text(sql::INSERT_READY))
            .bind(batch_id.as_bytes().as_slice())
            .bind(self.pair.master.as_str())
            .bind(self.pair.recipient.as_str())
            .bind(key_ids)
            .bind(self.grade.as_str())
            .bind(self.usable_until.as_ms())
            .bind(sealed)
            .execute(&mut **link)
            .await?;
        Ok(())
    }
}

/// A request for a lease.
pub(super) struct LeaseJob {
    pub(super) pair: PairText,
    pub(super) blocks: u32,
}

/// What a lease took out of the store.
pub(super) struct Leased {
    pub(super) blocks: Vec<LeasedBlock>,
    /// Also a block that was given up counts.
    pub(super) took_any: bool,
}

impl LeaseJob {
    /// Takes the blocks that end first. A block whose rows are damaged is reported and given up: it must not
    /// stand in the way of the others.
    pub(super) async fn run(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Leased, StoreError> {
        let rows = sqlx::query(link.text(sql::READY))
            .bind(self.pair.master.as_str())
            .bind(self.pair.recipient.as_str())
            .bind(now.as_ms())
            .bind(i64::from(self.blocks))
            .fetch_all(&mut **link)
            .await?;
        let mut leased = Leased { blocks: Vec::with_capacity(rows.len()), took_any: !rows.is_empty() };
        if rows.is_empty() {
            return Ok(leased);
        }
        let blocks = rows.iter().map(Block::read).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<u8> = blocks.iter().flat_map(|block| *block.batch_id.as_bytes()).collect();
        sqlx::query(link.text(sql::DELETE_READY)).bind(ids).execute(&mut **link).await?;
        for block in blocks {
            match block.open(link, sealer).await {
                Ok(keys) => leased.blocks.push(block.leased(keys)),
                Err(error) if error.is_damage_of_rows() => {
                    error!(batch.id = %block.batch_id, "ready keys cannot be opened and are given up");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(leased)
    }
}

/// A row of `ready_blocks` with what its batch says.
struct Block {
    batch_id: BatchId,
    key_ids: Vec<KeyId>,
    /// All of them one after the other, unless they have to be looked up one by one.
    sealed: Option<Vec<u8>>,
    grade: SourceGrade,
    usable_until: Timestamp,
    created_at: Timestamp,
    expires_at: Timestamp,
    data_key_id: DataKeyId,
    is_retrievable: bool,
}

impl Block {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let batch_id = BatchId::from_bytes(array(row.try_get("batch_id")?, "ready_blocks")?);
        let time = |column: &str| row.try_get::<i64, _>(column).map(Timestamp::from_ms);
        let grade: String = row.try_get("grade")?;
        let entitled: String = row.try_get("entitled")?;
        Ok(Self {
            batch_id,
            key_ids: unpack(row.try_get("key_ids")?),
            sealed: row.try_get("sealed")?,
            grade: serde_json::from_str(&grade).map_err(|_| StoreError::corrupt("ready_blocks", batch_id))?,
            usable_until: time("usable_until_ms")?,
            created_at: time("created_at_ms")?,
            expires_at: time("expires_at_ms")?,
            data_key_id: array(row.try_get("data_key_id")?, "batches")?,
            is_retrievable: entitled != "[]",
        })
    }

    /// The keys of the block; erased here when nobody may retrieve them at this site.
    async fn open(&self, link: &mut Link, sealer: &Sealer) -> Result<Vec<Key>, StoreError> {
        learn_data_key(link, sealer, self.data_key_id).await?;
        let keys = match &self.sealed {
            Some(sealed) => self.open_all(sealer, sealed)?,
            None => self.look_up(link, sealer).await?,
        };
        if !self.is_retrievable {
            sqlx::query(link.text(sql::ERASE_KEYS)).bind(pack(&self.key_ids)).execute(&mut **link).await?;
        }
        Ok(keys)
    }

    /// The keys as they stand in the block.
    fn open_all(&self, sealer: &Sealer, sealed: &[u8]) -> Result<Vec<Key>, StoreError> {
        let damaged = || StoreError::corrupt("ready_blocks", self.batch_id);
        let row_bytes = sealed.len().checked_div(self.key_ids.len()).filter(|bytes| *bytes > 0);
        let rows = sealed.chunks_exact(row_bytes.ok_or_else(damaged)?);
        if rows.len() != self.key_ids.len() || !rows.remainder().is_empty() {
            return Err(damaged());
        }
        let open = |(id, row): (&KeyId, &[u8])| {
            sealer.open(&self.data_key_id, *id, self.batch_id, row)?.ok_or_else(damaged)
        };
        self.key_ids.iter().zip(rows).map(open).collect()
    }

    /// Those keys of the block that are not voided.
    async fn look_up(&self, link: &mut Link, sealer: &Sealer) -> Result<Vec<Key>, StoreError> {
        let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(link.text(sql::READY_KEYS))
            .bind(pack(&self.key_ids))
            .bind(self.batch_id.as_bytes().as_slice())
            .fetch_all(&mut **link)
            .await?;
        let mut keys = Vec::with_capacity(rows.len());
        for (id, sealed) in rows {
            let id = KeyId::from_bytes(array(&id, "keys")?);
            let key = sealer.open(&self.data_key_id, id, self.batch_id, &sealed)?;
            keys.push(key.ok_or_else(|| StoreError::corrupt("keys", id))?);
        }
        Ok(keys)
    }

    fn leased(self, keys: Vec<Key>) -> LeasedBlock {
        LeasedBlock {
            batch_id: self.batch_id,
            usable_until: self.usable_until,
            created_at: self.created_at,
            provenance: Provenance { grade: self.grade, expires_at: self.expires_at }.into(),
            is_stored: self.is_retrievable,
            keys,
        }
    }
}

/// Blocks whose keys are still in the store, given back.
pub(super) struct ReturnJob {
    pub(super) batch_id: BatchId,
    pub(super) key_ids: Vec<u8>,
    pub(super) row: ReadyRow,
}

impl ReturnJob {
    pub(super) async fn run(&self, link: &mut Link) -> Result<(), StoreError> {
        self.row.write(link, self.batch_id, &self.key_ids, None).await
    }
}
