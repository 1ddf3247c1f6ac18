//! The interface of a change to the store, as the writer runs it.

use std::future::Future;

use kme::Timestamp;

use super::locks::Needs;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::Sealer;

/// A change to the store other than a retrieval. (Retrievals of one transaction are decided together:
/// [`super::Records`].)
pub(crate) trait Verb: Send + Sync + 'static {
    /// What its caller gets.
    type Output: Send;

    /// Its name in metrics.
    const NAME: &'static str;

    /// How many keys it handles. Limits how many jobs share a transaction.
    fn key_count(&self) -> usize {
        0
    }

    /// Adds what it has to lock.
    fn lock(&self, _needs: &mut Needs) {}

    /// Does its part of a transaction. Runs again if the transaction fails.
    fn run(
        &self,
        link: &mut Link,
        sealer: &Sealer,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;

    /// Whether it changed anything, so that a commit is needed.
    fn is_change(_output: &Self::Output) -> bool {
        true
    }
}
