//! Stored data keys: unwrapping them for the sealer.

use tracing::warn;

use super::ids::id_bytes;
use super::sql;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::Sealer;

/// Most data keys that are checked when the store opens. There is one for each hour and daemon since the
/// oldest live record.
const CHECKED_MAX: i64 = 10_000;
const TABLE: &str = "data_keys";

/// Unwraps the stored data keys. The newest must open and be this KME's: a store whose KEK was lost, or that
/// belongs to another KME, is refused before it takes new keys. What older ones sealed may all have expired, so
/// those only warn.
pub(crate) async fn check_data_keys(link: &mut Link, sealer: &Sealer) -> Result<(), StoreError> {
    let stored: Vec<(Vec<u8>, String, Vec<u8>, String)> =
        sqlx::query_as(link.text(sql::DATA_KEYS)).bind(CHECKED_MAX).fetch_all(&mut **link).await?;
    for (index, (id, kek_id, wrapped, kme)) in stored.iter().enumerate() {
        if index == 0 && !kme.is_empty() && kme != sealer.kme().as_str() {
            return Err(StoreError::Settings(format!(
                "the database has the keys of KME {kme}, and this is KME {}: check store.url and kme.id",
                sealer.kme()
            )));
        }
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
pub(crate) async fn learn_data_key(link: &mut Link, sealer: &Sealer, id: &[u8]) -> Result<(), StoreError> {
    if sealer.knows(&id_bytes(id, TABLE)?) {
        return Ok(());
    }
    let stored: Option<(String, Vec<u8>)> =
        sqlx::query_as(link.text(sql::DATA_KEY)).bind(id).fetch_optional(&mut **link).await?;
    let (kek_id, wrapped) = stored.ok_or_else(|| StoreError::corrupt(TABLE, hex::encode(id)))?;
    unwrap_data_key(sealer, id, &kek_id, &wrapped)
}

/// Unwraps a stored data key, so that the sealer can open with it.
pub(crate) fn unwrap_data_key(
    sealer: &Sealer,
    id: &[u8],
    kek_id: &str,
    wrapped: &[u8],
) -> Result<(), StoreError> {
    if sealer.learn(id_bytes(id, TABLE)?, kek_id, wrapped)? {
        Ok(())
    } else {
        Err(StoreError::corrupt(TABLE, hex::encode(id)))
    }
}
