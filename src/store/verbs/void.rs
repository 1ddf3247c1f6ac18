//! Voiding keys for their source.

use kme::life::{self, KeyAtVoid, Voiding};
use kme::{BatchId, KeyId, KmeId, Timestamp};

use super::locks::Needs;
use super::rows;
use super::sql;
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::{KeyState, MAX_KEYS, Record};
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
pub(crate) struct VoidUnlessLeased {
    pub(crate) void: Void,
    /// When it was made.
    pub(crate) created_at: Timestamp,
}

impl Void {
    pub(crate) fn new(
        source: &KmeId,
        batch_id: BatchId,
        key_ids: &[KeyId],
        expires_at: Timestamp,
    ) -> Result<Self, StoreError> {
        if key_ids.len() > MAX_KEYS {
            return Err(StoreError::Misuse("too many keys in one void"));
        }
        let (source, key_ids) = (source.clone(), key_ids.to_vec());
        Ok(Self { source, batch_id, key_ids, expires_at, may_leave_tombstone: true })
    }

    /// The same, which does nothing if the batch is not here.
    pub(crate) fn without_tombstone(self) -> Self {
        Self { may_leave_tombstone: false, ..self }
    }

    async fn carry_out(&self, link: &mut Link, known: Option<Record>) -> Result<VoidOutcome, StoreError> {
        match known {
            Some(mut record) if record.header.source == self.source => {
                let outcome = self.void(&mut record);
                rows::save(link, &[&record]).await?;
                Ok(outcome)
            }
            // A batch of another KME looks like an unknown one.
            _ => self.leave_tombstone(link).await,
        }
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

    fn void(&self, record: &mut Record) -> VoidOutcome {
        let mut outcome = VoidOutcome::default();
        // Also when only some keys are voided, so that a batch that its source gave up is not handed out.
        record.state.withdraw_ready();
        let slots: Vec<usize> = if self.key_ids.is_empty() {
            record.state.voided = true;
            (0..record.header.key_ids.len()).collect()
        } else {
            self.key_ids.iter().filter_map(|id| record.slot_of(*id)).collect()
        };
        for slot in slots {
            let Some(id) = record.header.key_ids.get(slot).copied() else { continue };
            let key = match record.state.of(slot) {
                KeyState::Voided => KeyAtVoid::Voided,
                KeyState::Gone => KeyAtVoid::Retrieved,
                _ if record.state.uses(slot).next().is_some() => KeyAtVoid::Retrieved,
                KeyState::Ready | KeyState::Stored => KeyAtVoid::Fresh,
            };
            match life::void(key) {
                Voiding::AlreadyVoided => outcome.voided.push(id),
                Voiding::Erase => {
                    outcome.voided.push(id);
                    record.erase(slot, KeyState::Voided);
                }
                Voiding::Keep => outcome.kept.push(id),
            }
        }
        outcome
    }
}

impl Verb for Void {
    type Output = VoidOutcome;
    const NAME: &'static str = "void";

    fn key_count(&self) -> usize {
        self.key_ids.len()
    }

    fn lock(&self, needs: &mut Needs) {
        needs.batch(self.batch_id);
        needs.record(self.batch_id);
    }

    async fn run(&self, link: &mut Link, sealer: &Sealer, _: Timestamp) -> Result<VoidOutcome, StoreError> {
        let known = rows::record(link, sealer, self.batch_id).await?;
        self.carry_out(link, known).await
    }

    fn is_change(outcome: &VoidOutcome) -> bool {
        outcome.tombstone != Tombstone::NotAllowed
    }
}

impl Verb for VoidUnlessLeased {
    type Output = ReadyVoid;
    const NAME: &'static str = "void";

    fn lock(&self, needs: &mut Needs) {
        self.void.lock(needs);
    }

    async fn run(&self, link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<ReadyVoid, StoreError> {
        let Self { void, created_at } = self;
        if now >= life::leases_show_until(*created_at, void.expires_at) {
            // A sweep may have erased the record that would show a lease.
            return Ok(ReadyVoid::InUse);
        }
        let known = rows::record(link, sealer, void.batch_id).await?;
        let is_in_use = known.as_ref().is_some_and(|record| {
            record.header.source == void.source
                && !record.state.voided
                && record.state.ready_slots().len() < record.header.key_ids.len()
        });
        if is_in_use {
            return Ok(ReadyVoid::InUse);
        }
        void.carry_out(link, known).await.map(|_| ReadyVoid::Voided)
    }
}
