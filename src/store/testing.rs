//! For tests here and elsewhere: how much a store holds.

use super::Store;
use super::connection::Sql;

const COUNTS: Sql =
    Sql::same("SELECT (SELECT count(*) FROM batches), (SELECT count(*) FROM keys WHERE sealed IS NOT NULL)");

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Batches, also voided ones and those whose keys are all retrieved.
    pub(crate) batches: u64,
    /// Keys whose material is still here.
    pub(crate) keys: u64,
}

/// Counts what is stored.
pub(crate) async fn counts(store: &Store) -> Counts {
    let mut reader = store.readers.take().await.unwrap();
    let link = reader.link().unwrap();
    let (batches, keys): (i64, i64) = sqlx::query_as(link.text(COUNTS)).fetch_one(&mut **link).await.unwrap();
    reader.give_back();
    Counts { batches: batches.unsigned_abs(), keys: keys.unsigned_abs() }
}
