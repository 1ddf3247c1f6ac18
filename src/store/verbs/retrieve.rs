//! Retrieving keys by ID.
//!
//! All retrievals of one commit share three steps: load the rows of all requested IDs, decide the requests
//! one after the other in memory, write the changes. [`Rows::decide`] is the whole rule and does no I/O.
//!
//! Most retrievals use up fresh keys that one party holds. For a group of these, one statement erases the
//! rows and returns them ([`Rows::take_fresh`]). If the decisions do not come to erasing exactly these keys,
//! the transaction is rolled back and the group takes the three steps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kme::life::{self, Claim, EarlierUse, Erasure, Terms};
use kme::{BatchId, Key, KeyId, KmeId, Party, RetrievalMode, SaeId, Timestamp};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::batch_cache::{BatchCache, BatchFacts};
use super::data_keys::learn_data_key;
use super::ids::{are_distinct, id_bytes, pack, pack_batches};
use super::sql;
use crate::store::connection::Link;
use crate::store::error::{RetrieveError, StoreError};
use crate::store::sealing::Sealer;
use crate::store::types::Retrieval;

/// Most keys of one retrieval.
pub const MAX_KEYS_PER_RETRIEVAL: usize = 4_096;

/// A request for keys by ID.
pub(crate) struct Retrieve {
    pub(crate) key_ids: Vec<KeyId>,
    caller: SaeId,
    local: KmeId,
    path: Party,
    terms: Terms,
}

impl Retrieve {
    /// Copies the request.
    pub(crate) fn new(asked: &Retrieval<'_>) -> Result<Self, StoreError> {
        if asked.key_ids.is_empty() || asked.key_ids.len() > MAX_KEYS_PER_RETRIEVAL {
            return Err(StoreError::Misuse("too few or too many keys in one retrieval"));
        }
        if !are_distinct(asked.key_ids.iter().copied()) {
            return Err(StoreError::Misuse("a key ID twice in one retrieval"));
        }
        Ok(Self {
            key_ids: asked.key_ids.to_vec(),
            caller: asked.caller.clone(),
            local: asked.local.clone(),
            path: asked.path.clone(),
            terms: Terms { mode: asked.mode, replay_window: asked.replay_window },
        })
    }

    /// Whether a retrieval can be used once and not repeated, as [`Rows::take_fresh`] needs it.
    pub(crate) fn is_once_for_all(&self) -> bool {
        self.terms.mode == RetrievalMode::Once && self.terms.replay_window.is_zero()
    }
}

/// A retrieval that took place.
struct Use {
    party: String,
    by: String,
    at: Timestamp,
}

struct KeyRow {
    batch: Arc<BatchFacts>,
    /// `None`: voided, or erased by an earlier request of the group.
    sealed: Option<Vec<u8>>,
    uses: Vec<Use>,
}

/// What one request may do with one key.
enum Verdict {
    NotEntitled,
    Missing,
    /// Serve it, and use up this party's retrieval.
    Take(String),
    /// Serve it again.
    Repeat,
}

impl KeyRow {
    fn verdict(&self, asked: &Retrieve, now: Timestamp) -> Verdict {
        if self.sealed.is_none() {
            return Verdict::Missing;
        }
        // The caller's own right comes before that of its site.
        let parties = [Party::Sae(asked.caller.clone()), Party::Kme(asked.local.clone())];
        let mut verdict = Verdict::NotEntitled;
        for party in parties {
            for held in self.batch.entitled.iter().filter(|held| held.party == party) {
                verdict = Verdict::Missing;
                if !self.batch.path_fits(held.role, &asked.path) {
                    continue;
                }
                let name = party_text(&party);
                let earlier = self.uses.iter().find(|used| used.party == name);
                let earlier = earlier.map(|used| {
                    let by_same_caller = used.by == asked.caller.as_str();
                    EarlierUse { by_same_caller, at: used.at }
                });
                match life::claim(earlier, asked.terms, now) {
                    Claim::Take => return Verdict::Take(name),
                    Claim::Repeat => return Verdict::Repeat,
                    Claim::Spent => {}
                }
            }
        }
        verdict
    }

    fn all_used(&self) -> bool {
        self.batch.entitled.iter().all(|held| {
            let name = party_text(&held.party);
            self.uses.iter().any(|used| used.party == name)
        })
    }
}

/// The requested keys that exist and have not expired, and what changed on them.
pub(crate) struct Rows {
    keys: HashMap<KeyId, KeyRow>,
    now: Timestamp,
    /// How many rows [`Self::take_fresh`] has erased.
    taken: Option<usize>,
    erased: Vec<KeyId>,
    /// Keys that the sweep may erase, by the time from which it may.
    erase_later: BTreeMap<Timestamp, Vec<KeyId>>,
    /// New uses by (party, caller).
    used: BTreeMap<(String, String), Vec<KeyId>>,
    /// Batches of this site with new uses. A lease of them has to look up each key.
    own: BTreeSet<BatchId>,
}

impl Rows {
    /// Loads the rows of `key_ids` and the data keys that open them.
    pub(crate) async fn load(
        link: &mut Link,
        sealer: &Sealer,
        mut key_ids: Vec<KeyId>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut rows = Self::none(now);
        key_ids.sort_unstable();
        key_ids.dedup();
        if key_ids.is_empty() {
            return Ok(rows);
        }
        let found = sqlx::query(link.text(sql::KEYS)).bind(pack(&key_ids)).fetch_all(&mut **link).await?;
        let ids = found.iter().map(|row| batch_of(row, "keys")).collect::<Result<_, _>>()?;
        let mut batches = HashMap::new();
        for facts in batches_of(link, sealer, ids).await? {
            batches.insert(facts.batch_id, facts);
        }
        for row in found {
            if let Some(batch) = batches.get(&batch_of(&row, "keys")?) {
                rows.add(&row, batch)?;
            }
        }
        Ok(rows)
    }

    /// Erases the keys of `key_ids` that nobody has touched, and loads their rows. The decisions on them may
    /// be committed only if [`Self::is_what_was_taken`].
    pub(crate) async fn take_fresh(
        link: &mut Link,
        sealer: &Sealer,
        cache: &mut BatchCache,
        mut key_ids: Vec<KeyId>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut rows = Self::none(now);
        key_ids.sort_unstable();
        key_ids.dedup();
        let taken: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> =
            sqlx::query_as(link.text(sql::TAKE_FRESH)).bind(pack(&key_ids)).fetch_all(&mut **link).await?;
        rows.taken = Some(taken.len());
        let mut fresh = Vec::with_capacity(taken.len());
        let mut missing = BTreeSet::new();
        for (key_id, batch_id, sealed) in taken {
            let batch_id = BatchId::from_bytes(id_bytes(&batch_id, "keys")?);
            let facts = cache.get(batch_id);
            if facts.is_none() {
                missing.insert(batch_id);
            }
            fresh.push((KeyId::from_bytes(id_bytes(&key_id, "keys")?), batch_id, facts, sealed));
        }
        for facts in batches_of(link, sealer, missing).await? {
            cache.add(facts);
        }
        for (key_id, batch_id, facts, sealed) in fresh {
            let Some(batch) = facts.or_else(|| cache.get(batch_id)) else { continue };
            if life::is_live(batch.expires_at, now) {
                rows.keys.insert(key_id, KeyRow { batch, sealed: Some(sealed), uses: Vec::new() });
            }
        }
        Ok(rows)
    }

    fn none(now: Timestamp) -> Self {
        Self {
            keys: HashMap::new(),
            now,
            taken: None,
            erased: Vec::new(),
            erase_later: BTreeMap::new(),
            used: BTreeMap::new(),
            own: BTreeSet::new(),
        }
    }

    /// Adds a row, unless its batch has expired.
    fn add(&mut self, row: &AnyRow, batch: &Arc<BatchFacts>) -> Result<(), StoreError> {
        if !life::is_live(batch.expires_at, self.now) {
            return Ok(());
        }
        let key_id = KeyId::from_bytes(id_bytes(row.try_get("key_id")?, "keys")?);
        let erase_at: Option<i64> = row.try_get("erase_at_ms")?;
        let past_erasure = erase_at.is_some_and(|at| at <= self.now.as_ms());
        let sealed: Option<Vec<u8>> = row.try_get("sealed")?;
        let entry = self.keys.entry(key_id).or_insert_with(|| KeyRow {
            batch: Arc::clone(batch),
            sealed: sealed.filter(|_| !past_erasure),
            uses: Vec::new(),
        });
        if let Some(party) = row.try_get("party")? {
            entry.uses.push(Use {
                party,
                by: row.try_get("retrieved_by")?,
                at: Timestamp::from_ms(row.try_get("retrieved_at_ms")?),
            });
        }
        Ok(())
    }

    /// Decides one request, all or nothing. On success, later requests see what it used up.
    pub(crate) fn decide(&mut self, asked: &Retrieve, sealer: &Sealer) -> Result<Vec<Key>, RetrieveError> {
        let verdicts: Vec<(KeyId, Verdict)> = asked
            .key_ids
            .iter()
            .map(|id| (*id, self.keys.get(id).map_or(Verdict::Missing, |row| row.verdict(asked, self.now))))
            .collect();
        // 401 comes before 400: one key of others is enough, even if other keys are missing.
        if verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::NotEntitled)) {
            return Err(RetrieveError::NotEntitled);
        }
        let mut opened = Vec::with_capacity(verdicts.len());
        for (id, verdict) in &verdicts {
            let row = self.keys.get(id).ok_or(RetrieveError::NotFound)?;
            let (Verdict::Take(_) | Verdict::Repeat, Some(sealed)) = (verdict, &row.sealed) else {
                return Err(RetrieveError::NotFound);
            };
            // Before anything is used up: one damaged row must not cost the caller the other keys.
            let key = sealer
                .open(&row.batch.data_key_id, *id, row.batch.batch_id, sealed)
                .map_err(StoreError::from)?;
            opened.push(key.ok_or_else(|| StoreError::corrupt("keys", id))?);
        }
        for (id, verdict) in verdicts {
            if let Verdict::Take(party) = verdict {
                self.take(id, party, asked);
            }
        }
        Ok(opened)
    }

    fn take(&mut self, id: KeyId, party: String, asked: &Retrieve) {
        let Some(row) = self.keys.get_mut(&id) else { return };
        row.uses.push(Use { party: party.clone(), by: asked.caller.to_string(), at: self.now });
        if row.batch.source == asked.local {
            self.own.insert(row.batch.batch_id);
        }
        match life::erasure(row.all_used(), asked.terms, self.now) {
            Erasure::Now => {
                row.sealed = None;
                self.erased.push(id);
                return;
            }
            Erasure::At(at) => self.erase_later.entry(at).or_default().push(id),
            Erasure::Keep => {}
        }
        self.used.entry((party, asked.caller.to_string())).or_default().push(id);
    }

    /// Whether the decisions erase exactly the keys that [`Self::take_fresh`] has erased.
    pub(crate) fn is_what_was_taken(&self) -> bool {
        self.taken == Some(self.erased.len()) && self.used.is_empty() && self.erase_later.is_empty()
    }

    /// Whether the decisions changed anything.
    pub(crate) fn is_changed(&self) -> bool {
        !self.used.is_empty() || !self.erased.is_empty()
    }

    /// Writes what the decisions changed.
    pub(crate) async fn write(&self, link: &mut Link) -> Result<(), StoreError> {
        for ((party, by), key_ids) in &self.used {
            sqlx::query(link.text(sql::INSERT_RETRIEVALS))
                .bind(pack(key_ids))
                .bind(party.as_str())
                .bind(by.as_str())
                .bind(self.now.as_ms())
                .execute(&mut **link)
                .await?;
        }
        for (at, key_ids) in &self.erase_later {
            sqlx::query(link.text(sql::ERASE_LATER))
                .bind(pack(key_ids))
                .bind(at.as_ms())
                .execute(&mut **link)
                .await?;
        }
        if self.taken.is_none() && !self.erased.is_empty() {
            sqlx::query(link.text(sql::ERASE_KEYS)).bind(pack(&self.erased)).execute(&mut **link).await?;
        }
        if !self.own.is_empty() {
            sqlx::query(link.text(sql::DISTRUST_READY))
                .bind(pack_batches(&self.own))
                .execute(&mut **link)
                .await?;
        }
        Ok(())
    }
}

/// Loads batches and the data keys that open their keys.
async fn batches_of(
    link: &mut Link,
    sealer: &Sealer,
    ids: BTreeSet<BatchId>,
) -> Result<Vec<Arc<BatchFacts>>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(link.text(sql::BATCHES)).bind(pack_batches(&ids)).fetch_all(&mut **link).await?;
    let facts = rows.iter().map(|row| batch_facts(row).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    for batch in &facts {
        learn_data_key(link, sealer, batch.data_key_id).await?;
    }
    Ok(facts)
}

fn batch_of(row: &AnyRow, table: &'static str) -> Result<BatchId, StoreError> {
    Ok(BatchId::from_bytes(id_bytes(row.try_get("batch_id")?, table)?))
}

fn batch_facts(row: &AnyRow) -> Result<BatchFacts, StoreError> {
    let batch_id = batch_of(row, "batches")?;
    let damaged = || StoreError::corrupt("batches", batch_id);
    let text = |column: &str| row.try_get::<String, _>(column);
    Ok(BatchFacts {
        batch_id,
        source: text("source_kme")?.parse().map_err(|_| damaged())?,
        master: text("master_sae")?.parse().map_err(|_| damaged())?,
        recipients: serde_json::from_str(&text("recipients")?).map_err(|_| damaged())?,
        entitled: serde_json::from_str(&text("entitled")?).map_err(|_| damaged())?,
        data_key_id: id_bytes(row.try_get("data_key_id")?, "batches")?,
        expires_at: Timestamp::from_ms(row.try_get("expires_at_ms")?),
    })
}

/// A party in the table `retrievals`. The prefix keeps an SAE and a KME of the same name apart.
fn party_text(party: &Party) -> String {
    match party {
        Party::Sae(sae) => format!("sae:{sae}"),
        Party::Kme(kme) => format!("kme:{kme}"),
    }
}
