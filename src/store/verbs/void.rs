//! Voiding keys for their source.

use std::collections::{HashMap, HashSet};

use kme::life::{self, KeyAtVoid, Voiding};
use kme::{BatchId, KeyId, KmeId, Timestamp};

use super::ids::{pack, unpack};
use super::insert::MAX_STORED_BATCH_KEYS;
use super::locks::Needs;
use super::sql;
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::sealing::Sealer;
use crate::store::types::{ReadyVoid, Tombstone, VoidOutcome};

/// Voids keys of a batch.
pub(crate) struct Void {
    source: KmeId,
    batch_id: BatchId,
    /// Empty: the whole batch.
    key_ids: Vec<KeyId>,
    expires_at: Timestamp,
    may_leave_tombstone: bool,
}

/// Voids a whole batch of ready keys, unless some of them were leased.
pub(crate) struct VoidUnlessLeased(pub(crate) Void);

impl Void {
    pub(crate) fn new(
        source: &KmeId,
        batch_id: BatchId,
        key_ids: &[KeyId],
        expires_at: Timestamp,
    ) -> Result<Self, StoreError> {
        if key_ids.len() > MAX_STORED_BATCH_KEYS {
            return Err(StoreError::Misuse("too many keys in one void"));
        }
        let (source, key_ids) = (source.clone(), key_ids.to_vec());
        Ok(Self { source, batch_id, key_ids, expires_at, may_leave_tombstone: true })
    }

    /// The same, which does nothing if the batch is not here.
    pub(crate) fn without_tombstone(self) -> Self {
        Self { may_leave_tombstone: false, ..self }
    }

    async fn carry_out(&self, link: &mut Link) -> Result<VoidOutcome, StoreError> {
        let id: &[u8] = self.batch_id.as_bytes();
        let known: Option<(String, Vec<u8>, String, Vec<u8>)> =
            sqlx::query_as(link.text(sql::BATCH)).bind(id).fetch_optional(&mut **link).await?;
        let members = match known {
            Some((source, _, _, key_ids)) if source == self.source.as_str() => unpack(&key_ids),
            // A batch of another KME looks like an unknown one.
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

    async fn leave_tombstone(&self, link: &mut Link) -> Result<VoidOutcome, StoreError> {
        if !self.may_leave_tombstone {
            return Ok(VoidOutcome { tombstone: Tombstone::NotAllowed, ..VoidOutcome::default() });
        }
        sqlx::query(link.text(sql::INSERT_TOMBSTONE))
            .bind(self.batch_id.as_bytes().as_slice())
            .bind(self.source.as_str())
            .bind(self.expires_at.as_ms())
            .execute(&mut **link)
            .await?;
        Ok(VoidOutcome { voided: self.key_ids.clone(), kept: Vec::new(), tombstone: Tombstone::Left })
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
                // Its last retrieval erased the row.
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

impl Verb for Void {
    type Output = VoidOutcome;
    const NAME: &'static str = "void";

    fn key_count(&self) -> usize {
        self.key_ids.len()
    }

    fn lock(&self, needs: &mut Needs) {
        needs.keys_of_batch(self.batch_id, &self.key_ids);
    }

    async fn run(&self, link: &mut Link, _: &Sealer, _: Timestamp) -> Result<VoidOutcome, StoreError> {
        self.carry_out(link).await
    }

    fn is_change(outcome: &VoidOutcome) -> bool {
        outcome.tombstone != Tombstone::NotAllowed
    }
}

impl Verb for VoidUnlessLeased {
    type Output = ReadyVoid;
    const NAME: &'static str = "void";

    fn lock(&self, needs: &mut Needs) {
        self.0.lock(needs);
    }

    async fn run(&self, link: &mut Link, _: &Sealer, now: Timestamp) -> Result<ReadyVoid, StoreError> {
        let Self(void) = self;
        if !life::is_live(void.expires_at, now) {
            // A sweep may have erased the row that would show it.
            return Ok(ReadyVoid::InUse);
        }
        let known: Option<(String, i64, Option<i64>)> = sqlx::query_as(link.text(sql::READINESS))
            .bind(void.batch_id.as_bytes().as_slice())
            .fetch_optional(&mut **link)
            .await?;
        match known {
            Some((state, all, ready)) if state != "voided" && ready != Some(all) => Ok(ReadyVoid::InUse),
            _ => void.carry_out(link).await.map(|_| ReadyVoid::Voided),
        }
    }
}
