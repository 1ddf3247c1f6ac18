//! Keys made ahead of demand: listed as ready, leased by a daemon, given back.
//!
//! A lease deletes the row that lists the keys, and is committed before the keys reach the daemon's memory.
//! So after a crash nobody hands them out again; at worst they are lost to `enc_keys`.

use kme::{BatchId, Key, KeyId, Provenance, SourceGrade, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;
use tracing::error;

use super::data_keys::learn_data_key;
use super::ids::{id_bytes, pack, pack_batches, unpack};
use super::locks::Needs;
use super::sql;
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::{DataKeyId, Sealer};
use crate::store::types::{LeasedBlock, ReadyPair, ReturnedBlock};

/// Estimated number of keys in a block that was not read yet.
const BLOCK_KEYS: usize = 64;

/// A pair as the columns hold it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PairText {
    master: String,
    recipient: String,
}

impl PairText {
    pub(crate) fn of(pair: ReadyPair<'_>) -> Result<Self, StoreError> {
        let recipient = serde_json::to_string(pair.recipient)
            .map_err(|_| StoreError::Misuse("a recipient that cannot be JSON"))?;
        Ok(Self { master: pair.master.to_string(), recipient })
    }

    /// How many keys are ready for the pair.
    pub(crate) async fn count(&self, link: &mut Link, now: Timestamp) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(link.text(sql::COUNT_READY))
            .bind(self.master.as_str())
            .bind(self.recipient.as_str())
            .bind(now.as_ms())
            .fetch_one(&mut **link)
            .await?;
        Ok(count.unsigned_abs())
    }
}

/// A block to be listed as ready.
pub(crate) struct ReadyRow {
    pair: PairText,
    grade: String,
    usable_until: Timestamp,
}

impl ReadyRow {
    pub(crate) fn new(
        pair: ReadyPair<'_>,
        grade: &SourceGrade,
        usable_until: Timestamp,
    ) -> Result<Self, StoreError> {
        let grade =
            serde_json::to_string(grade).map_err(|_| StoreError::Misuse("a grade that cannot be JSON"))?;
        Ok(Self { pair: PairText::of(pair)?, grade, usable_until })
    }

    /// Lists `key_ids` of a stored batch, with or without the `sealed` keys. Does nothing if the batch was
    /// voided.
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

/// Takes blocks of ready keys out of the store.
pub(crate) struct Lease {
    pub(crate) pair: PairText,
    /// How many at most.
    pub(crate) blocks: u32,
}

/// What a lease took out of the store.
pub(crate) struct Leased {
    pub(crate) blocks: Vec<LeasedBlock>,
    /// Also true when all blocks were damaged.
    took_any: bool,
}

impl Verb for Lease {
    type Output = Leased;
    const NAME: &'static str = "lease";

    fn key_count(&self) -> usize {
        usize::try_from(self.blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK_KEYS)
    }

    /// Takes the blocks that end first. A damaged block is reported and deleted, so that it does not block
    /// the others.
    async fn run(&self, link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<Leased, StoreError> {
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
        let ids = pack_batches(blocks.iter().map(|block| &block.batch_id));
        sqlx::query(link.text(sql::DELETE_READY)).bind(ids).execute(&mut **link).await?;
        for block in blocks {
            match block.open(link, sealer).await {
                Ok(keys) => leased.blocks.push(block.leased(keys)),
                Err(error) if error.is_damage_of_rows() => {
                    error!(batch.id = %block.batch_id, "ready keys cannot be opened and are dropped");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(leased)
    }

    fn is_change(leased: &Leased) -> bool {
        leased.took_any
    }
}

/// A row of `ready_blocks`, with columns of its batch.
struct Block {
    batch_id: BatchId,
    key_ids: Vec<KeyId>,
    /// The sealed keys, concatenated. `None`: each has to be looked up.
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
        let batch_id = BatchId::from_bytes(id_bytes(row.try_get("batch_id")?, "ready_blocks")?);
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
            data_key_id: id_bytes(row.try_get("data_key_id")?, "batches")?,
            is_retrievable: entitled != "[]",
        })
    }

    /// The keys of the block. Erases them if nobody may retrieve them at this site.
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

    /// The keys in the block itself.
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

    /// The keys of the block that are still in `keys`.
    async fn look_up(&self, link: &mut Link, sealer: &Sealer) -> Result<Vec<Key>, StoreError> {
        let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(link.text(sql::READY_KEYS))
            .bind(pack(&self.key_ids))
            .bind(self.batch_id.as_bytes().as_slice())
            .fetch_all(&mut **link)
            .await?;
        let mut keys = Vec::with_capacity(rows.len());
        for (id, sealed) in rows {
            let id = KeyId::from_bytes(id_bytes(&id, "keys")?);
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

/// Lists leased keys as ready again.
pub(crate) struct GiveBack(Vec<ReturnedRow>);

struct ReturnedRow {
    batch_id: BatchId,
    key_ids: Vec<u8>,
    row: ReadyRow,
}

impl GiveBack {
    pub(crate) fn new(blocks: &[ReturnedBlock<'_>]) -> Result<Self, StoreError> {
        let row = |block: &ReturnedBlock<'_>| {
            let row = ReadyRow::new(block.pair, &block.provenance.grade, block.usable_until)?;
            Ok(ReturnedRow { batch_id: block.batch_id, key_ids: pack(block.key_ids), row })
        };
        blocks.iter().map(row).collect::<Result<_, _>>().map(Self)
    }
}

impl Verb for GiveBack {
    type Output = ();
    const NAME: &'static str = "return";

    fn lock(&self, needs: &mut Needs) {
        self.0.iter().for_each(|block| needs.batch(block.batch_id));
    }

    async fn run(&self, link: &mut Link, _: &Sealer, _: Timestamp) -> Result<(), StoreError> {
        for block in &self.0 {
            block.row.write(link, block.batch_id, &block.key_ids, None).await?;
        }
        Ok(())
    }
}
