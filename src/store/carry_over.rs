//! Moves what the release before stored (a row for each key) into records. The release after this one needs
//! neither this file nor the first two migrations.
//!
//! One transaction moves everything and drops the old tables. So a daemon of the release before finds no table
//! from then on: it answers 503 and is unready, and never decides on half of the keys. A transaction that did
//! not come to its end changed nothing; the next start tries again.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use kme::{BatchId, Key, KeyId, KeyMaterial, Party, SecretBytes, Timestamp};
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tracing::{error, info};

use super::connection::{Dialect, Link, Sql};
use super::error::StoreError;
use super::record::{Header, KeyState, Ready, Record, State};
use super::sealing::{SealError, Sealer};
use super::types::ContentDigest;
use super::verbs::{id_bytes, rows};
use super::writer::commit::commit_or_uncertain;

const HAS_OLD_TABLES: Sql = Sql {
    sqlite: "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'batches'",
    // Not to_regclass: it may answer from before a wait.
    postgres: "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'batches'",
};
/// Daemons that start together move one after the other.
const BEGIN: Sql = Sql {
    sqlite: "BEGIN IMMEDIATE",
    postgres: "BEGIN; SELECT pg_advisory_xact_lock(hashtext('dqkd carry over ' || current_schema()))",
};
const LOCK: &str = "LOCK TABLE data_keys, batches, keys, retrievals, ready_blocks IN ACCESS EXCLUSIVE MODE";
const DROP: &str = "DROP TABLE ready_blocks; DROP TABLE retrievals; DROP TABLE keys; DROP TABLE batches; \
     DELETE FROM data_keys WHERE kme = ''";

/// The batch after `$2` that has not expired at `$1`, with its data key.
const NEXT_BATCH: &str = "SELECT b.batch_id, b.source_kme, b.master_sae, b.recipients, b.entitled, b.key_bytes, \
     b.key_ids, b.content_digest, b.state, b.created_at_ms, b.expires_at_ms, b.data_key_id, d.kek_id, d.wrapped \
     FROM batches b JOIN data_keys d ON d.data_key_id = b.data_key_id \
     WHERE b.expires_at_ms > $1 AND b.batch_id > $2 ORDER BY b.batch_id LIMIT 1";
const KEYS: &str = "SELECT key_id, sealed, erase_at_ms FROM keys WHERE batch_id = $1";
const RETRIEVALS: &str = "SELECT r.key_id, r.party, r.retrieved_by, r.retrieved_at_ms FROM keys k \
     JOIN retrievals r ON r.key_id = k.key_id WHERE k.batch_id = $1";
const READY: &str = "SELECT key_ids, grade, usable_until_ms FROM ready_blocks WHERE batch_id = $1";

/// Key ID, sealed key, when it is to be erased.
type KeyRow = (Vec<u8>, Option<Vec<u8>>, Option<i64>);

/// Moves what is in old tables into records, if there are old tables.
///
/// # Errors
/// [`StoreError::Schema`] without `migrate`, [`StoreError::Seal`] if the KEK of a live batch is missing, or a
/// failure of the database. Nothing was moved; drop the connection.
pub(crate) async fn carry_over(
    link: &mut Link,
    sealer: &Sealer,
    migrate: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    if !has_old_tables(link).await? {
        return Ok(());
    }
    if !migrate {
        return Err(StoreError::Schema(
            "the database has keys as an older release stored them: run `dqkd migrate`".to_owned(),
        ));
    }
    sqlx::raw_sql(link.text(BEGIN)).execute(&mut **link).await?;
    if let Err(error) = move_all(link, sealer, now).await {
        // The connection is dropped with the error; this frees its locks at once.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut **link).await;
        return Err(error);
    }
    commit_or_uncertain(link).await
}

async fn move_all(link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<(), StoreError> {
    if !has_old_tables(link).await? {
        // Another daemon has moved everything meanwhile.
        return Ok(());
    }
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(LOCK).execute(&mut **link).await?;
    }
    let (mut batches, mut after) = (0_u64, Vec::new());
    while let Some(row) =
        sqlx::query(NEXT_BATCH).bind(now.as_ms()).bind(after.as_slice()).fetch_optional(&mut **link).await?
    {
        after = row.try_get("batch_id")?;
        move_batch(link, sealer, &row, now).await?;
        batches += 1;
    }
    sqlx::raw_sql(DROP).execute(&mut **link).await?;
    if batches > 0 {
        info!(batches, "stored batches were moved into records");
    }
    Ok(())
}

async fn has_old_tables(link: &mut Link) -> Result<bool, StoreError> {
    let tables: i64 = sqlx::query_scalar(link.text(HAS_OLD_TABLES)).fetch_one(&mut **link).await?;
    Ok(tables > 0)
}

async fn move_batch(
    link: &mut Link,
    sealer: &Sealer,
    row: &AnyRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    let id: Vec<u8> = row.try_get("batch_id")?;
    let batch_id = BatchId::from_bytes(id_bytes(&id, "batches")?);
    let damaged = || StoreError::corrupt("batches", batch_id);
    let header = header(row, damaged)?;
    if !KeyId::share_prefix(&header.key_ids) {
        error!(batch.id = %batch_id, "dropped: its key IDs do not share six bytes, as those of every dqkd do");
        return Ok(());
    }
    let seal = OldSeal::of(row, batch_id, sealer)?;
    let mut state = State::fresh(header.key_ids.len(), None);
    let mut keys: Vec<Option<Key>> = Vec::with_capacity(header.key_ids.len());
    let stored: Vec<KeyRow> = sqlx::query_as(KEYS).bind(&id).fetch_all(&mut **link).await?;
    let mut stored: HashMap<_, _> =
        stored.into_iter().map(|(id, sealed, erase_at)| (id, (sealed, erase_at))).collect();
    for (slot, key_id) in header.key_ids.iter().enumerate() {
        let mut key = None;
        match stored.remove(key_id.as_bytes().as_slice()) {
            // Everybody has retrieved it.
            None => state.set(slot, KeyState::Gone),
            Some((None, _)) => state.set(slot, KeyState::Voided),
            Some((Some(sealed), erase_at)) => {
                key = seal.as_ref().and_then(|seal| seal.open(*key_id, &sealed));
                if key.is_none() {
                    error!(key.id = %key_id, "a key does not open; whoever retrieves it is told of the damage");
                }
                if let Some(at) = erase_at {
                    state.erase_at(slot, Timestamp::from_ms(at));
                }
            }
        }
        keys.push(key);
    }
    let slot_of = |key_id: &[u8]| header.key_ids.iter().position(|id| id.as_bytes() == key_id);
    let retrievals: Vec<(Vec<u8>, String, String, i64)> =
        sqlx::query_as(RETRIEVALS).bind(&id).fetch_all(&mut **link).await?;
    for (key_id, party, by, at) in retrievals {
        let Some(slot) = slot_of(&key_id) else { continue };
        let party = header.entitled.iter().position(|held| party_text(&held.party) == party);
        let by = by.parse().map_err(|_| damaged())?;
        state.note_use(slot, party.ok_or_else(damaged)?, by, Timestamp::from_ms(at));
    }
    let ready: Option<(Vec<u8>, String, i64)> =
        sqlx::query_as(READY).bind(&id).fetch_optional(&mut **link).await?;
    if let Some((key_ids, grade, until)) = ready {
        let grade = serde_json::from_str(&grade).map_err(|_| damaged())?;
        let slots: Vec<usize> = key_ids.chunks(16).filter_map(slot_of).collect();
        state.make_ready(&slots, &Ready::new(Timestamp::from_ms(until), grade));
    }
    state.voided = row.try_get::<&str, _>("state")? == "voided";
    let keys = keys.iter().map(Option::as_ref);
    let new = Record::seal(batch_id, header, state, keys, sealer, now)?;
    rows::insert(link, sealer, &[&new]).await
}

fn header(row: &AnyRow, damaged: impl Fn() -> StoreError) -> Result<Header, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let number = |column: &str| row.try_get::<i64, _>(column);
    let bytes = |column: &str| row.try_get::<Vec<u8>, _>(column);
    let mut key_ids: Vec<KeyId> =
        bytes("key_ids")?.as_chunks().0.iter().map(|id| KeyId::from_bytes(*id)).collect();
    key_ids.sort_unstable();
    Ok(Header {
        source: text("source_kme")?.parse().map_err(|_| damaged())?,
        master: text("master_sae")?.parse().map_err(|_| damaged())?,
        recipients: serde_json::from_str(&text("recipients")?).map_err(|_| damaged())?,
        entitled: serde_json::from_str(&text("entitled")?).map_err(|_| damaged())?,
        created_at: Timestamp::from_ms(number("created_at_ms")?),
        expires_at: Timestamp::from_ms(number("expires_at_ms")?),
        content: ContentDigest(bytes("content_digest")?.try_into().map_err(|_| damaged())?),
        key_bytes: usize::try_from(number("key_bytes")?).map_err(|_| damaged())?,
        key_ids,
    })
}

/// A party in the table `retrievals`.
fn party_text(party: &Party) -> String {
    match party {
        Party::Sae(sae) => format!("sae:{sae}"),
        Party::Kme(kme) => format!("kme:{kme}"),
    }
}

/// Opens the keys of a batch as the release before sealed them: each by itself, with AES-256-GCM under the data
/// key.
struct OldSeal {
    cipher: LessSafeKey,
    batch_id: BatchId,
    data_key_id: Vec<u8>,
}

impl OldSeal {
    /// `Ok(None)`: the wrapped data key is not genuine.
    fn of(row: &AnyRow, batch_id: BatchId, sealer: &Sealer) -> Result<Option<Self>, StoreError> {
        let wrapped: Vec<u8> = row.try_get("wrapped")?;
        let Some(key) = sealer.keks().unwrap(row.try_get("kek_id")?, &wrapped)? else { return Ok(None) };
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| SealError::Crypto)?;
        Ok(Some(Self { cipher: LessSafeKey::new(key), batch_id, data_key_id: row.try_get("data_key_id")? }))
    }

    /// `None`: it is not what was sealed there.
    fn open(&self, id: KeyId, sealed: &[u8]) -> Option<Key> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = SecretBytes::copy_of(text);
        let mut bound = Vec::new();
        let parts: [&[u8]; 6] =
            [b"dqkd store 1", b"keys", b"sealed", id.as_bytes(), self.batch_id.as_bytes(), &self.data_key_id];
        for part in parts {
            bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bound.extend_from_slice(part);
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher.open_in_place(nonce, Aad::from(bound), text.expose_mut()).ok()?;
        Some(Key { id, material: KeyMaterial::new(SecretBytes::copy_of(plain)) })
    }
}
