//! What delivery needs from `supply`.

use futures_util::future::BoxFuture;
use kme::{FreshKey, Recipient, SaeId};

use crate::supply::{KeyOrder, Supply, SupplyError};

/// Where fresh keys come from.
pub trait KeySource: Send + Sync {
    /// Hands out exactly `order.number` keys of `order.key_bytes` bytes. Every recipient's site has durably
    /// stored their twins, and no key was handed out before. Keys in memory are returned at the first poll.
    ///
    /// # Errors
    /// [`SupplyError`]; then no key was handed out.
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>>;

    /// How many keys of the default size are ready to be handed out to `master`, shared with `recipient`.
    fn ready<'a>(&'a self, master: &'a SaeId, recipient: &'a Recipient) -> BoxFuture<'a, u32>;
}

impl KeySource for Supply {
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>> {
        Box::pin(self.make(order))
    }

    fn ready<'a>(&'a self, master: &'a SaeId, recipient: &'a Recipient) -> BoxFuture<'a, u32> {
        Box::pin(self.ready(master, recipient))
    }
}
