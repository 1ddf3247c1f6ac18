//! What delivery needs of the room that makes keys.

use futures_util::future::BoxFuture;

use crate::kme::{FreshKey, Recipient};
use crate::supply::{KeyOrder, Supply, SupplyError};

/// Where fresh keys come from.
pub trait KeySource: Send + Sync {
    /// Hands out exactly `order.number` keys of `order.key_bytes` bytes, whose twins every recipient's site
    /// has stored durably, and which were never handed out before.
    ///
    /// # Errors
    /// [`SupplyError`]; then no key was handed out.
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>>;

    /// How many keys of the default size could be handed out now to be shared with `recipients`.
    fn deliverable_now(&self, recipients: &[Recipient]) -> u32;
}

impl KeySource for Supply {
    fn make<'a>(&'a self, order: KeyOrder<'a>) -> BoxFuture<'a, Result<Vec<FreshKey>, SupplyError>> {
        Box::pin(self.make(order))
    }

    fn deliverable_now(&self, recipients: &[Recipient]) -> u32 {
        self.deliverable_now(recipients)
    }
}
