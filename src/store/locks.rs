//! What a transaction locks on Postgres before it looks at anything. On SQLite it has the database to itself.
//!
//! Every statement of a READ COMMITTED transaction sees what others have committed by then. So whatever a decision
//! rests on is locked by one statement and read by a later one, in this order, which is the same everywhere, so
//! that two transactions do not wait for each other:
//!
//! 1. the batches that are to be stored, voided, withdrawn or listed as ready, also those that do not exist
//!    yet, by advisory locks. (Else a void that finds no batch and an insert that finds no tombstone could both commit.)
//! 2. the ready blocks of batches that are to be voided or withdrawn. Leases pass locked blocks over, and a lease
//!    that came first may still take keys;
//! 3. the keys that are to be retrieved or voided.

use kme::{BatchId, KeyId};

use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::jobs::Job;
use super::{pack, sql};

/// What jobs need to have to themselves.
#[derive(Default)]
struct Needs {
    /// Packed.
    batches: Vec<u8>,
    key_ids: Vec<KeyId>,
    /// Packed: batches of which all keys are to be voided.
    whole: Vec<u8>,
    /// Packed.
    ready: Vec<u8>,
}

impl Needs {
    /// With `taking`, retrievals lock their keys by themselves.
    fn of(jobs: &[Job], taking: bool) -> Self {
        let mut needs = Self::default();
        for job in jobs {
            match job {
                Job::Insert(job, _) => needs.batch(job.batch_id()),
                Job::Return(jobs, _) => jobs.iter().for_each(|job| needs.batch(job.batch_id)),
                Job::Retrieve(..) if taking => {}
                Job::Retrieve(job, _) => needs.key_ids.extend_from_slice(&job.key_ids),
                Job::Void(job, _) | Job::Withdraw(job, _) => {
                    needs.batch(job.batch_id);
                    needs.ready.extend_from_slice(job.batch_id.as_bytes());
                    needs.key_ids.extend_from_slice(&job.key_ids);
                    if job.key_ids.is_empty() {
                        needs.whole.extend_from_slice(job.batch_id.as_bytes());
                    }
                }
                _ => {}
            }
        }
        needs
    }

    fn batch(&mut self, id: BatchId) {
        self.batches.extend_from_slice(id.as_bytes());
    }
}

/// Takes the locks that `jobs` need, until the end of the transaction. With `taking`, without those of retrievals.
pub(super) async fn take(link: &mut Link, jobs: &[Job], taking: bool) -> Result<(), StoreError> {
    if link.dialect() == Dialect::Sqlite {
        return Ok(());
    }
    let needs = Needs::of(jobs, taking);
    if !needs.batches.is_empty() {
        sqlx::query(sql::LOCK_BATCHES).bind(needs.batches.as_slice()).execute(&mut **link).await?;
    }
    if !needs.ready.is_empty() {
        sqlx::query(sql::LOCK_READY).bind(needs.ready.as_slice()).execute(&mut **link).await?;
    }
    let mut keys = pack(&needs.key_ids);
    if !needs.whole.is_empty() {
        // The list of a batch's keys never changes.
        let lists: Vec<Vec<u8>> = sqlx::query_scalar(sql::KEYS_OF_BATCHES)
            .bind(needs.whole.as_slice())
            .fetch_all(&mut **link)
            .await?;
        keys.extend(lists.into_iter().flatten());
    }
    if !keys.is_empty() {
        sqlx::query(sql::LOCK_KEYS).bind(keys).execute(&mut **link).await?;
    }
    Ok(())
}
