//! Keys made ahead of demand: ready, leased by a daemon, given back.
//!
//! A lease makes keys unready, and is committed before they reach the daemon's memory. So after a crash nobody
//! hands them out again; at worst they are lost to `enc_keys`.

use std::sync::Arc;
use std::time::Duration;

use kme::life;
use kme::{BatchId, Key, KeyMaterial, KmeId, Provenance, SecretBytes, Timestamp};
use tracing::{error, warn};

use super::insert::Insert;
use super::locks::Needs;
use super::rows::{self, Found};
use super::sql;
use super::verb::Verb;
use crate::store::connection::Link;
use crate::store::error::StoreError;
use crate::store::record::{KeyState, Ready, Record, recipient_text};
use crate::store::sealing::Sealer;
use crate::store::types::{ContentDigest, LeasedBlock, NewBatch, ReadyPair, ReturnedBlock};

/// Estimated number of keys in a record that was not read yet.
const BLOCK_KEYS: usize = 64;

/// A pair as the columns hold it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PairText {
    master: String,
    recipient: String,
}

impl PairText {
    pub(crate) fn of(pair: ReadyPair<'_>) -> Result<Self, StoreError> {
        Ok(Self { master: pair.master.to_string(), recipient: recipient_text(pair.recipient)? })
    }

    /// How many keys are ready for the pair.
    pub(crate) async fn count(&self, link: &mut Link, now: Timestamp) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(link.text(sql::COUNT_READY))
            .bind(self.master.as_str())
            .bind(self.recipient.as_str())
            .bind(now.as_ms())
            .fetch_one(&mut **link)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Whether the record's seals say that its ready keys are this pair's.
    fn has(&self, record: &Record) -> Result<bool, StoreError> {
        Ok(record.header.master.as_str() == self.master
            && record.listed()?.recipient.as_ref() == Some(&self.recipient))
    }
}

/// Takes blocks of ready keys out of the store.
pub(crate) struct Lease {
    pub(crate) pair: PairText,
    /// How many at most.
    pub(crate) blocks: u32,
    /// How long the master's copy stays after a hand-out.
    pub(crate) master_ttl: Duration,
}

/// What a lease took out of the store.
pub(crate) struct Leased {
    pub(crate) blocks: Vec<LeasedBlock>,
    /// Also true when all blocks were damaged.
    took_any: bool,
}

impl Lease {
    /// Takes the ready keys out of `record`. `None`: its seals do not say what its row says.
    fn take(&self, record: &mut Record, now: Timestamp) -> Result<Option<LeasedBlock>, StoreError> {
        let Some(terms) = record.state.ready().cloned() else { return Ok(None) };
        let is_live = now < terms.until() && life::is_live(record.header.expires_at, now);
        if !is_live || !self.pair.has(record)? {
            return Ok(None);
        }
        let mut keys = Vec::new();
        let stays = !record.header.entitled.is_empty();
        for slot in record.state.ready_slots() {
            match record.key(slot)? {
                Some(key) => keys.push(key),
                None => {
                    error!(batch.id = %record.batch_id, slot, "a ready key cannot be opened and is dropped");
                }
            }
            if !stays {
                record.erase(slot, KeyState::Gone);
            }
        }
        record.state.withdraw_ready();
        let (created_at, expires_at) = (record.header.created_at, record.header.expires_at);
        let hand_out_until = life::hand_out_until(created_at, expires_at, now);
        record.state.keep_copies_until(life::copy_ends_at(hand_out_until, self.master_ttl));
        Ok(Some(LeasedBlock {
            batch_id: record.batch_id,
            entitled: record.header.entitled.clone(),
            leased_at: now,
            usable_until: terms.until(),
            created_at,
            provenance: Arc::new(Provenance { grade: terms.grade, expires_at }),
            keys,
        }))
    }
}

impl Verb for Lease {
    type Output = Leased;
    const NAME: &'static str = "lease";

    fn key_count(&self) -> usize {
        usize::try_from(self.blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK_KEYS)
    }

    /// Takes the blocks that end first. A damaged one is reported and unlisted, so that it does not stand in
    /// the way of the others. One whose KEK is missing here stays for the daemons that have it.
    async fn run(&self, link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<Leased, StoreError> {
        let pair = (self.pair.master.as_str(), self.pair.recipient.as_str());
        let found = rows::ready_records(link, sealer, pair, now, self.blocks).await?;
        let mut leased = Leased { blocks: Vec::with_capacity(found.len()), took_any: false };
        let mut taken = Vec::with_capacity(found.len());
        for found in found {
            let spoiled = match found {
                Found::Record(mut record) => match self.take(&mut record, now)? {
                    Some(block) => {
                        leased.blocks.extend((!block.keys.is_empty()).then_some(block));
                        leased.took_any = true;
                        taken.push(record);
                        continue;
                    }
                    None => record.batch_id,
                },
                Found::Damaged { error: StoreError::Seal(error), .. } => {
                    if sealer.may_warn(now) {
                        warn!(%error, "ready keys of another daemon cannot be opened here");
                    }
                    continue;
                }
                Found::Damaged { batch_id, .. } => batch_id,
            };
            leased.took_any = true;
            error!(batch.id = %spoiled, "ready keys were changed in the database and are dropped");
            rows::unlist(link, spoiled).await?;
        }
        rows::save(link, &taken.iter().map(|record| &**record).collect::<Vec<_>>()).await?;
        Ok(leased)
    }

    fn is_change(leased: &Leased) -> bool {
        leased.took_any
    }
}

/// Makes leased keys ready again.
pub(crate) struct GiveBack(Vec<Returned>);

struct Returned {
    batch_id: BatchId,
    source: KmeId,
    terms: Ready,
    keys: Vec<Key>,
    /// Stores them if this site does not have the batch, or no longer.
    anew: Insert,
}

impl GiveBack {
    pub(crate) fn new(
        blocks: &[ReturnedBlock<'_>],
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let returned = |block: &ReturnedBlock<'_>| {
            let terms = Ready::new(block.usable_until, block.provenance.grade.clone());
            let batch = NewBatch {
                batch_id: block.batch_id,
                source: block.source,
                master: block.pair.master,
                recipients: std::slice::from_ref(block.pair.recipient),
                entitled: block.entitled,
                // Nobody pushes this batch to its own source, so its digest is never compared.
                content: ContentDigest([0; 32]),
                created_at: block.created_at,
                expires_at: block.provenance.expires_at,
                copy_ends_at: None,
                keys: block.keys,
            };
            let anew = Insert::new(std::slice::from_ref(&batch), Some(&terms), sealer, now)?;
            let copy = |key: &Key| Key {
                id: key.id,
                material: KeyMaterial::new(SecretBytes::copy_of(key.material.expose())),
            };
            let keys = block.keys.iter().map(copy).collect();
            Ok(Returned { batch_id: block.batch_id, source: block.source.clone(), terms, keys, anew })
        };
        blocks.iter().map(returned).collect::<Result<_, _>>().map(Self)
    }
}

impl Returned {
    fn give_back(&self, record: &mut Record) -> Result<(), StoreError> {
        if record.state.voided {
            return Ok(());
        }
        let mut slots = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let Some(slot) = record.slot_of(key.id) else { continue };
            // Where nobody may retrieve a key, only a lease can have taken it out.
            if record.header.entitled.is_empty() && record.state.of(slot) == KeyState::Gone {
                record.restore(slot, key)?;
            }
            slots.push(slot);
        }
        record.state.make_ready(&slots, &self.terms);
        if !record.header.has_slaves() {
            // Those that do not come back were handed out.
            record.state.fix_copies();
        }
        Ok(())
    }
}

impl Verb for GiveBack {
    type Output = ();
    const NAME: &'static str = "return";

    fn lock(&self, needs: &mut Needs) {
        for block in &self.0 {
            block.anew.needs(needs);
            needs.record(block.batch_id);
        }
    }

    async fn run(&self, link: &mut Link, sealer: &Sealer, _: Timestamp) -> Result<(), StoreError> {
        for block in &self.0 {
            let given_back = match rows::record(link, sealer, block.batch_id).await {
                Ok(Some(mut record)) if record.header.source == block.source => {
                    block.give_back(&mut record)?;
                    rows::save(link, &[&record]).await
                }
                // The batch of another KME, which has taken the ID.
                Ok(Some(_)) => continue,
                Ok(None) => block.anew.carry_out(link, sealer).await.map(drop),
                Err(error) => Err(error),
            };
            match given_back {
                // It must not cost the keys of the other blocks.
                Err(error) if error.is_about_rows() => {
                    error!(batch.id = %block.batch_id, %error, "leased keys cannot be given back and are dropped");
                }
                given_back => given_back?,
            }
        }
        Ok(())
    }
}
