//! Stored data keys: unwrapping them for the sealer.

use tracing::warn;

use super::ids::id_bytes;
use super::sql;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::{DataKeyId, Sealer};

/// Most data keys that are checked when the store opens. There is one for each start since the oldest live
/// batch.
const CHECKED_MAX: i64 = 10_000;

/// Unwraps the stored data keys. The newest must open: a store whose KEK was lost or mixed up is refused
/// before it takes new keys. The keys under older ones may all have expired, so those only warn.
pub(crate) async fn check_data_keys(link: &mut Link, sealer: &Sealer) -> Result<(), StoreError> {
    let stored: Vec<(Vec<u8>, String, Vec<u8>)> =
        sqlx::query_as(link.text(sql::DATA_KEYS)).bind(CHECKED_MAX).fetch_all(&mut **link).await?;
    for (index, (id, kek_id, wrapped)) in stored.iter().enumerate() {
        match unwrap_data_key(sealer, id, kek_id, wrapped) {
            Err(error) if index == 0 => return Err(error),
            Err(_) => {
                warn!(kek.id = %kek_id, "an older data key cannot be unwrapped; its keys cannot be returned");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Unwraps a data key that another process drew, unless that was done before.
pub(super) async fn learn_data_key(
    link: &mut Link,
    sealer: &Sealer,
    id: DataKeyId,
) -> Result<(), StoreError> {
    if sealer.knows(&id) {
        return Ok(());
    }
    let (kek_id, wrapped): (String, Vec<u8>) =
        sqlx::query_as(link.text(sql::DATA_KEY)).bind(id.as_slice()).fetch_one(&mut **link).await?;
    unwrap_data_key(sealer, &id, &kek_id, &wrapped)
}

/// Unwraps a stored data key, so that the sealer can open with it.
pub(crate) fn unwrap_data_key(
    sealer: &Sealer,
    id: &[u8],
    kek_id: &str,
    wrapped: &[u8],
) -> Result<(), StoreError> {
    if sealer.learn(id_bytes(id, "data_keys")?, kek_id, wrapped)? {
        Ok(())
    } else {
        Err(StoreError::corrupt("data_keys", hex::encode(id)))
    }
}
