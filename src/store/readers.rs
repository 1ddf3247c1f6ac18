//! Connections that only read: few, made when needed, never shared, dropped after any failure.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connect::Address;
use super::dialect::Link;
use super::error::StoreError;

const READERS: usize = 2;
/// How long a read waits for a connection.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// The reading connections of a store.
pub(super) struct Readers {
    address: std::sync::Arc<Address>,
    free: Semaphore,
    idle: Mutex<Vec<Link>>,
}

/// A reading connection in use. Unless it is given back it is closed, since a failed or abandoned read leaves it in
/// a state that nobody knows, and so are the idle ones: a server that was restarted ended them all.
pub(super) struct Reader<'a> {
    link: Option<Link>,
    readers: &'a Readers,
    _permit: SemaphorePermit<'a>,
}

impl Readers {
    pub(super) fn new(address: std::sync::Arc<Address>) -> Self {
        Self { address, free: Semaphore::new(READERS), idle: Mutex::default() }
    }

    pub(super) async fn take(&self) -> Result<Reader<'_>, StoreError> {
        let wait = tokio::time::timeout(READER_TIMEOUT, self.free.acquire());
        let permit = wait.await.map_err(|_| StoreError::Busy(None))?.map_err(|_| StoreError::Closed)?;
        let idle = self.idle().pop();
        let link = match idle {
            Some(link) => link,
            None => self.address.connect_to_read().await?,
        };
        Ok(Reader { link: Some(link), readers: self, _permit: permit })
    }

    pub(super) async fn close(&self) {
        self.free.close();
        let idle = std::mem::take(&mut *self.idle());
        for link in idle {
            // Whatever it says, the connection is gone.
            let _ = link.into_inner().close().await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    pub(super) fn link(&mut self) -> Result<&mut Link, StoreError> {
        self.link.as_mut().ok_or(StoreError::Closed)
    }

    /// For the next read, after one that succeeded.
    pub(super) fn give_back(mut self) {
        let link = self.link.take();
        if !self.readers.free.is_closed() {
            self.readers.idle().extend(link);
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if self.link.is_some() {
            self.readers.idle().clear();
        }
    }
}
