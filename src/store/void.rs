//! Voiding keys for their source, within the writer's transaction.

use std::collections::{HashMap, HashSet};

use kme::life::{self, KeyAtVoid, Voiding};
use kme::{BatchId, KeyId, KmeId, Timestamp};

use super::dialect::Link;
use super::error::StoreError;
use super::types::{VoidOutcome, Withdrawn};
use super::{pack, sql, unpack};

/// A request to void.
pub(super) struct VoidJob {
    pub(super) source: KmeId,
    pub(super) batch_id: BatchId,
    /// Empty: the whole batch.
    pub(super) key_ids: Vec<KeyId>,
    pub(super) expires_at: Timestamp,
}

impl VoidJob {
    pub(super) async fn run(&self, link: &mut Link) -> Result<VoidOutcome, StoreError> {
        let id: &[u8] = self.batch_id.as_bytes();
        let known: Option<(String, Vec<u8>, String, Vec<u8>)> =
            sqlx::query_as(link.text(sql::BATCH)).bind(id).fetch_optional(&mut **link).await?;
        let members = match known {
            Some((source, _, _, key_ids)) if source == self.source.as_str() => unpack(&key_ids),
            // Another KME's batch is none of the caller's business, so it looks like an unknown one.
            _ => return self.leave_tombstone(link).await,
        };
        let whole_batch = self.key_ids.is_empty();
        let targets: Vec<KeyId> = if whole_batch {
            members
        } else {
            let members: HashSet<KeyId> = members.into_iter().collect();
            self.key_ids.iter().copied().filter(|id| members.contains(id)).collect()
        };
        let outcome = self.void(link, &targets).await?;
        if whole_batch {
            sqlx::query(link.text(sql::VOID_BATCH)).bind(id).execute(&mut **link).await?;
        }
        // Also when only some keys are voided, so that no list of ready keys names a voided one.
        sqlx::query(link.text(sql::DELETE_READY)).bind(id).execute(&mut **link).await?;
        Ok(outcome)
    }

    /// Voids a batch of ready keys of this site whose commit may or may not have taken place, unless some of it
    /// were leased since. Past its expiry nobody can tell, so nothing is voided then.
    pub(super) async fn withdraw(&self, link: &mut Link, now: Timestamp) -> Result<Withdrawn, StoreError> {
        if !life::is_live(self.expires_at, now) {
            return Ok(Withdrawn::InUse);
        }
        let known: Option<(String, i64, Option<i64>)> = sqlx::query_as(link.text(sql::READINESS))
            .bind(self.batch_id.as_bytes().as_slice())
            .fetch_optional(&mut **link)
            .await?;
        match known {
            Some((state, all, ready)) if state != "voided" && ready != Some(all) => Ok(Withdrawn::InUse),
            _ => self.run(link).await.map(|_| Withdrawn::Voided),
        }
    }

    async fn leave_tombstone(&self, link: &mut Link) -> Result<VoidOutcome, StoreError> {
        sqlx::query(link.text(sql::INSERT_TOMBSTONE))
            .bind(self.batch_id.as_bytes().as_slice())
            .bind(self.source.as_str())
            .bind(self.expires_at.as_ms())
            .execute(&mut **link)
            .await?;
        Ok(VoidOutcome { voided: self.key_ids.clone(), kept: Vec::new() })
    }

    async fn void(&self, link: &mut Link, targets: &[KeyId]) -> Result<VoidOutcome, StoreError> {
        let mut outcome = VoidOutcome::default();
        if targets.is_empty() {
            return Ok(outcome);
        }
        let rows: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(link.text(sql::VOIDABLE))
            .bind(pack(targets))
            .bind(self.batch_id.as_bytes().as_slice())
            .fetch_all(&mut **link)
            .await?;
        let rows: HashMap<Vec<u8>, (bool, bool)> =
            rows.into_iter().map(|(id, is_void, retrievals)| (id, (is_void != 0, retrievals > 0))).collect();
        let mut to_erase = Vec::new();
        for id in targets {
            let key = match rows.get(id.as_bytes().as_slice()) {
                Some((true, _)) => KeyAtVoid::Voided,
                Some((false, false)) => KeyAtVoid::Fresh,
                // A member of the batch without a row was erased by its last retrieval.
                Some((false, true)) | None => KeyAtVoid::Retrieved,
            };
            match life::void(key) {
                Voiding::AlreadyVoided => outcome.voided.push(*id),
                Voiding::Erase => {
                    outcome.voided.push(*id);
                    to_erase.push(*id);
                }
                Voiding::Keep => outcome.kept.push(*id),
            }
        }
        if !to_erase.is_empty() {
            sqlx::query(link.text(sql::VOID_KEYS)).bind(pack(&to_erase)).execute(&mut **link).await?;
        }
        Ok(outcome)
    }
}
