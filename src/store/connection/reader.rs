//! The connection that only reads: made when needed, dropped after any failure.

use std::sync::Arc;

use sqlx::Connection;
use tokio::sync::{Mutex, MutexGuard};

use super::address::Address;
use super::dialect::{Link, Sql};
use crate::store::error::StoreError;

const PING: Sql = Sql::same("SELECT 1 FROM records LIMIT 1");

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

/// The reading connection, in use. Closed unless it is kept: a read that failed or was abandoned may have
/// left it in any state.
pub(crate) struct Reading<'a> {
    pub(crate) link: Link,
    slot: MutexGuard<'a, Slot>,
}

impl Reader {
    pub(crate) fn new(address: Arc<Address>) -> Self {
        Self { address, slot: Mutex::default() }
    }

    /// Waits for the connection.
    pub(crate) async fn take(&self) -> Result<Reading<'_>, StoreError> {
        let mut slot = self.slot.lock().await;
        if slot.is_closed {
            return Err(StoreError::Closed);
        }
        let link = match slot.link.take() {
            Some(link) => link,
            None => self.address.connect_to_read().await?,
        };
        Ok(Reading { link, slot })
    }

    /// Whether the database can be read.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let mut reading = self.take().await?;
        sqlx::query(reading.link.text(PING)).fetch_optional(&mut *reading.link).await?;
        reading.keep();
        Ok(())
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

impl Reading<'_> {
    /// Keeps the connection for the next reader, after a read that succeeded.
    pub(crate) fn keep(mut self) {
        self.slot.link = Some(self.link);
    }
}
