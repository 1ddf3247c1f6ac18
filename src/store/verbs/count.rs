//! Counting what is stored for whom, a bounded chunk at a time.

use kme::{BatchId, KmeId};

use super::ids::id_bytes;
use super::sql;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::keys_left;
use crate::store::usage::{Count, Owner, Stored};

/// Batches of one chunk.
pub(crate) const CHUNK: u32 = 256;

/// Batch ID, source, master, number of keys, length of each, state.
type Row = (Vec<u8>, String, String, i64, i64, Vec<u8>);

/// Adds the batches after `after` to `count`, at most [`CHUNK`] of them. Returns the last one; `None` when
/// there are no more.
pub(crate) async fn count_batches(
    link: &mut Link,
    count: &mut Count,
    after: Option<BatchId>,
) -> Result<Option<BatchId>, StoreError> {
    let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
    let rows: Vec<Row> = sqlx::query_as(link.text(sql::COUNT_BATCHES))
        .bind(after)
        .bind(i64::from(CHUNK))
        .fetch_all(&mut **link)
        .await?;
    let mut last = None;
    for (id, source, master, keys, key_bytes, state) in rows {
        let id = BatchId::from_bytes(id_bytes(&id, "records")?);
        last = Some(id);
        // A name that is none any more, of an earlier version: nobody of that name stores more. The count must
        // end, because without it the sums only grow.
        let (Ok(source), Ok(master)) = (source.parse::<KmeId>(), master.parse()) else { continue };
        let keys = keys_left(&state, keys.unsigned_abs());
        let bytes = keys.saturating_mul(key_bytes.unsigned_abs());
        let amount = Stored { keys: keys.max(1), bytes, ..Stored::default() };
        count.add(Owner::Source(source.clone()), amount);
        count.add(Owner::Master(source, master), amount);
    }
    Ok(last)
}

/// Adds all tombstones to `count`.
pub(crate) async fn count_tombstones(link: &mut Link, count: &mut Count) -> Result<(), StoreError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as(link.text(sql::COUNT_TOMBSTONES)).fetch_all(&mut **link).await?;
    for (source, tombstones) in rows {
        let Ok(source) = source.parse() else { continue };
        let amount = Stored { tombstones: tombstones.unsigned_abs(), ..Stored::default() };
        count.add(Owner::Source(source), amount);
    }
    Ok(())
}
