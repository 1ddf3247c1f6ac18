//! The connection that only reads: made when needed, dropped after any failure.

use std::sync::Arc;

use sqlx::Connection;
use tokio::sync::Mutex;

use super::address::Address;
use super::dialect::Link;
use crate::store::error::StoreError;

/// The reading connection of a store, for one reader at a time.
pub(crate) struct Reader {
    address: Arc<Address>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    link: Option<Link>,
    is_closed: bool,
}

impl Reader {
    pub(crate) fn new(address: Arc<Address>) -> Self {
        Self { address, slot: Mutex::default() }
    }

    /// Waits for the connection and does `work` with it. The connection is closed unless that succeeds: a read
    /// that failed or was abandoned may have left it in any state.
    pub(crate) async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut Link) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.slot.lock().await;
        if slot.is_closed {
            return Err(StoreError::Closed);
        }
        let mut link = match slot.link.take() {
            Some(link) => link,
            None => self.address.connect_to_read().await?,
        };
        let result = work(&mut link).await?;
        slot.link = Some(link);
        Ok(result)
    }

    /// Closes the connection after the present read. Later readers get [`StoreError::Closed`].
    pub(crate) async fn close(&self) {
        let mut slot = self.slot.lock().await;
        slot.is_closed = true;
        if let Some(link) = slot.link.take() {
            // The connection is gone either way.
            let _ = link.into_inner().close().await;
        }
    }
}
