//! What delivery needs of the room that makes keys.

use futures_util::future::BoxFuture;

use crate::kme::{Key, Recipient, SaeId};
use crate::supply::{Supply, SupplyError};

/// An order for fresh keys.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The SAE that will receive them now.
    pub master: &'a SaeId,
    /// Everyone else who may retrieve them; at least one, distinct.
    pub recipients: &'a [Recipient],
    /// How many keys, at least one.
    pub number: usize,
    /// Length of each key in bytes, at least one.
    pub key_bytes: usize,
}

/// Where fresh keys come from.
pub trait KeySource: Send + Sync {
    /// Hands out exactly `order.number` keys of `order.key_bytes` bytes, whose twins every recipient's site
    /// has stored durably, and which were never handed out before.
    ///
    /// # Errors
    /// [`SupplyError`]; then no key was handed out.
    fn make<'a>(&'a self, order: Order<'a>) -> BoxFuture<'a, Result<Vec<Key>, SupplyError>>;

    /// How many keys of the default size could be handed out now to be shared with `recipients`.
    fn deliverable_now(&self, recipients: &[Recipient]) -> u32;
}

impl KeySource for Supply {
    fn make<'a>(&'a self, order: Order<'a>) -> BoxFuture<'a, Result<Vec<Key>, SupplyError>> {
        Box::pin(self.make(order.master, order.recipients, order.number, order.key_bytes))
    }

    fn deliverable_now(&self, recipients: &[Recipient]) -> u32 {
        self.deliverable_now(recipients)
    }
}
