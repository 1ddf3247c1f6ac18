//! What delivery needs of the room that makes keys.

use futures_util::future::BoxFuture;
use kme::{FreshKey, Recipient, SaeId};

use crate::supply::{KeyOrder, Supply, SupplyError};

/// Where fresh keys come from.
pub trait KeySource: Send + Sync {
    /// Hands out exactly `order.number` keys of `order.key_bytes` bytes, whose twins every recipient's site
    /// has stored durably, and which were never handed out before.
    ///
    /// # Errors
    /// [`SupplyError`]; then no key was handed out.
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>>;

    /// The same, if the keys are in memory and nothing has to be waited for; `None` when not, and then nothing
    /// happened.
    fn take_ready(&self, order: KeyOrder<'_>) -> Option<Vec<FreshKey>>;

    /// How many keys of the default size are ready to be handed out to `master`, shared with `recipient`.
    fn ready<'a>(&'a self, master: &'a SaeId, recipient: &'a Recipient) -> BoxFuture<'a, u32>;
}

impl KeySource for Supply {
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>> {
        Box::pin(self.make(order))
    }

    fn take_ready(&self, order: KeyOrder<'_>) -> Option<Vec<FreshKey>> {
        self.take_ready(&order)
    }

    fn ready<'a>(&'a self, master: &'a SaeId, recipient: &'a Recipient) -> BoxFuture<'a, u32> {
        Box::pin(self.ready(master, recipient))
    }
}
