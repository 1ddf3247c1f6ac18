//! Connections that only read: few, made when needed, each used by one reader at a time, dropped after any failure.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::address::Address;
use super::dialect::{Link, Sql};
use crate::store::error::StoreError;

const PING: Sql = Sql::same("SELECT 1 FROM batches LIMIT 1");

const READERS: usize = 2;
/// How long a read waits for a connection.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// The reading connections of a store.
pub(crate) struct Readers {
    address: Arc<Address>,
    free: Semaphore,
    idle: Mutex<Vec<Link>>,
}

/// A reading connection in use. If it is not given back, the read failed or was abandoned. Then it is closed, and so
/// are the idle ones: a server that was restarted ended them all.
pub(crate) struct Reader<'a> {
    link: Option<Link>,
    readers: &'a Readers,
    _permit: SemaphorePermit<'a>,
}

impl Readers {
    pub(crate) fn new(address: Arc<Address>) -> Self {
        Self { address, free: Semaphore::new(READERS), idle: Mutex::default() }
    }

    /// A connection for one reader.
    pub(crate) async fn take(&self) -> Result<Reader<'_>, StoreError> {
        let wait = tokio::time::timeout(READER_TIMEOUT, self.free.acquire());
        let permit = wait.await.map_err(|_| StoreError::Busy(None))?.map_err(|_| StoreError::Closed)?;
        let idle = self.idle.lock().pop();
        let link = match idle {
            Some(link) => link,
            None => self.address.connect_to_read().await?,
        };
        Ok(Reader { link: Some(link), readers: self, _permit: permit })
    }

    /// Whether the database can be read.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let mut reader = self.take().await?;
        let link = reader.link()?;
        sqlx::query(link.text(PING)).fetch_optional(&mut **link).await?;
        reader.give_back();
        Ok(())
    }

    /// Closes the idle connections; later readers get [`StoreError::Closed`].
    pub(crate) async fn close(&self) {
        self.free.close();
        let idle = std::mem::take(&mut *self.idle.lock());
        for link in idle {
            // The connection is gone either way.
            let _ = link.into_inner().close().await;
        }
    }
}

impl Reader<'_> {
    pub(crate) fn link(&mut self) -> Result<&mut Link, StoreError> {
        self.link.as_mut().ok_or(StoreError::Closed)
    }

    /// Keeps the connection for the next reader, after a read that succeeded.
    pub(crate) fn give_back(mut self) {
        let link = self.link.take();
        if !self.readers.free.is_closed() {
            self.readers.idle.lock().extend(link);
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if self.link.is_some() {
            self.readers.idle.lock().clear();
        }
    }
}
