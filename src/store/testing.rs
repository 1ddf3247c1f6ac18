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
    let mut reading = store.reader.take().await.unwrap();
    let counting = sqlx::query_as(reading.link.text(COUNTS)).fetch_one(&mut *reading.link);
    let (batches, keys): (i64, i64) = counting.await.unwrap();
    reading.keep();
    Counts { batches: batches.unsigned_abs(), keys: keys.unsigned_abs() }
}
