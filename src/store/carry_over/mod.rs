//! Moves what the release before stored, one row for each key, into records. For one release: then this folder
//! and the first two migrations go.
//!
//! One transaction moves everything and drops the old tables. So a daemon of the release before finds no table
//! from then on: it answers 503 and is unready, and never decides on half of the keys. A transaction that did
//! not come to its end changed nothing; the next start tries again.

mod old_seals;

use kme::{BatchId, Key, KeyId, Party, Timestamp};
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tracing::{error, info};

use self::old_seals::OldSeals;
use super::connection::{BE_HASTY, BE_PATIENT, Dialect, Link, Sql};
use super::error::StoreError;
use super::record::{Header, KeyState, Ready, Record, State};
use super::sealing::Sealer;
use super::types::{ContentDigest, Entitlement};
use super::verbs::{id_bytes, rows};
use super::writer::commit::commit;

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

const DATA_KEYS: &str = "SELECT data_key_id, kek_id, wrapped FROM data_keys WHERE kme = ''";
/// A page of what has not expired at `$1`.
const BATCHES: &str = "SELECT batch_id, source_kme, master_sae, recipients, entitled, key_bytes, key_ids, \
     data_key_id, content_digest, state, created_at_ms, expires_at_ms FROM batches \
     WHERE expires_at_ms > $1 AND batch_id > $2 ORDER BY batch_id LIMIT 100";
const KEYS: &str = "SELECT key_id, sealed, erase_at_ms FROM keys WHERE batch_id = $1";
const RETRIEVALS: &str = "SELECT r.key_id, r.party, r.retrieved_by, r.retrieved_at_ms FROM keys k \
     JOIN retrievals r ON r.key_id = k.key_id WHERE k.batch_id = $1";
const READY: &str = "SELECT key_ids, grade, usable_until_ms FROM ready_blocks WHERE batch_id = $1";

/// Key ID, sealed key, when it is to be erased.
type KeyRow = (Vec<u8>, Option<Vec<u8>>, Option<i64>);

/// Moves what is in old tables into records, if there are old tables.
///
/// # Errors
/// [`StoreError::Schema`] without `migrate`, [`StoreError::Seal`] if a KEK is missing, or a failure of the
/// database. Nothing was moved.
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
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(BE_PATIENT).execute(&mut **link).await?;
    }
    sqlx::raw_sql(link.text(BEGIN)).execute(&mut **link).await?;
    let moved = match move_all(link, sealer, now).await {
        Ok(moved) => moved,
        Err(error) => {
            // The connection is dropped with the error; this only says so at once.
            let _ = sqlx::raw_sql("ROLLBACK").execute(&mut **link).await;
            return Err(error);
        }
    };
    commit(link)
        .await
        .map_err(|error| if error.proves_no_commit() { error } else { error.into_uncertain() })?;
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(BE_HASTY).execute(&mut **link).await?;
    }
    if moved.batches > 0 {
        info!(batches = moved.batches, keys = moved.keys, "stored keys were moved into records");
    }
    Ok(())
}

async fn has_old_tables(link: &mut Link) -> Result<bool, StoreError> {
    let tables: i64 = sqlx::query_scalar(link.text(HAS_OLD_TABLES)).fetch_one(&mut **link).await?;
    Ok(tables > 0)
}

#[derive(Default)]
struct Moved {
    batches: u64,
    keys: u64,
}

async fn move_all(link: &mut Link, sealer: &Sealer, now: Timestamp) -> Result<Moved, StoreError> {
    let mut moved = Moved::default();
    if !has_old_tables(link).await? {
        // Another daemon has moved it meanwhile.
        return Ok(moved);
    }
    if link.dialect() == Dialect::Postgres {
        sqlx::raw_sql(LOCK).execute(&mut **link).await?;
    }
    let stored: Vec<(Vec<u8>, String, Vec<u8>)> = sqlx::query_as(DATA_KEYS).fetch_all(&mut **link).await?;
    let seals = OldSeals::new(stored, sealer.keks());
    let mut after = Vec::new();
    loop {
        let page =
            sqlx::query(BATCHES).bind(now.as_ms()).bind(after.as_slice()).fetch_all(&mut **link).await?;
        let Some(last) = page.last() else { break };
        after = last.try_get("batch_id")?;
        for row in &page {
            moved.keys += move_batch(link, sealer, &seals, row, now).await?;
            moved.batches += 1;
        }
    }
    sqlx::raw_sql(DROP).execute(&mut **link).await?;
    Ok(moved)
}

/// Returns how many keys it has.
async fn move_batch(
    link: &mut Link,
    sealer: &Sealer,
    seals: &OldSeals,
    row: &AnyRow,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let batch_id = BatchId::from_bytes(id_bytes(row.try_get("batch_id")?, "batches")?);
    let header = header(row, batch_id)?;
    if !KeyId::share_prefix(&header.key_ids) {
        error!(batch.id = %batch_id, "dropped: its key IDs do not share six bytes, as those of every dqkd do");
        return Ok(0);
    }
    let id: &[u8] = batch_id.as_bytes();
    let data_key_id = id_bytes(row.try_get("data_key_id")?, "batches")?;
    let mut state = State::fresh(header.key_ids.len(), None);
    let mut keys: Vec<Option<Key>> = header.key_ids.iter().map(|_| None).collect();
    let mut has_row = vec![false; keys.len()];
    let slot_of = |key_id: &[u8]| {
        let key_id = KeyId::from_bytes(id_bytes(key_id, "keys")?);
        Ok::<_, StoreError>(header.key_ids.binary_search(&key_id).ok().map(|slot| (slot, key_id)))
    };
    let stored: Vec<KeyRow> = sqlx::query_as(KEYS).bind(id).fetch_all(&mut **link).await?;
    for (key_id, sealed, erase_at) in stored {
        let Some((slot, key_id)) = slot_of(&key_id)? else { continue };
        if let Some(has_row) = has_row.get_mut(slot) {
            *has_row = true;
        }
        let Some(sealed) = sealed else {
            state.set(slot, KeyState::Voided);
            continue;
        };
        let key = seals.open(&data_key_id, key_id, batch_id, &sealed)?;
        if key.is_none() {
            error!(key.id = %key_id, "a key does not open; whoever retrieves it is told of the damage");
        }
        if let Some(place) = keys.get_mut(slot) {
            *place = key;
        }
        if let Some(at) = erase_at {
            state.erase_at(slot, Timestamp::from_ms(at));
        }
    }
    for (slot, _) in has_row.iter().enumerate().filter(|(_, has_row)| !**has_row) {
        state.set(slot, KeyState::Gone);
    }
    let retrievals: Vec<(Vec<u8>, String, String, i64)> =
        sqlx::query_as(RETRIEVALS).bind(id).fetch_all(&mut **link).await?;
    for (key_id, party, by, at) in retrievals {
        let damaged = || StoreError::corrupt("retrievals", hex::encode(&key_id));
        let Some((slot, _)) = slot_of(&key_id)? else { continue };
        let party = header.entitled.iter().position(|held| party_text(&held.party) == party);
        let by = by.parse().map_err(|_| damaged())?;
        state.note_use(slot, party.ok_or_else(damaged)?, by, Timestamp::from_ms(at));
    }
    let ready: Option<(Vec<u8>, String, i64)> =
        sqlx::query_as(READY).bind(id).fetch_optional(&mut **link).await?;
    if let Some((key_ids, grade, until)) = ready {
        let grade =
            serde_json::from_str(&grade).map_err(|_| StoreError::corrupt("ready_blocks", batch_id))?;
        let slots = key_ids.as_chunks::<16>().0.iter().filter_map(|id| slot_of(id).ok()?);
        let slots: Vec<usize> = slots.map(|(slot, _)| slot).collect();
        state.make_ready(&slots, &Ready::new(Timestamp::from_ms(until), grade));
    }
    state.voided = row.try_get::<String, _>("state")? == "voided";
    let count = header.key_ids.len() as u64;
    let keys = keys.iter().map(Option::as_ref);
    let new = Record::seal(batch_id, header, state, keys, sealer, now)?;
    rows::insert(link, sealer, &new).await?;
    Ok(count)
}

fn header(row: &AnyRow, batch_id: BatchId) -> Result<Header, StoreError> {
    let damaged = || StoreError::corrupt("batches", batch_id);
    let text = |column: &str| row.try_get::<String, _>(column);
    let number = |column: &str| row.try_get::<i64, _>(column);
    let bytes = |column: &str| row.try_get::<Vec<u8>, _>(column);
    let mut key_ids: Vec<KeyId> =
        bytes("key_ids")?.as_chunks().0.iter().map(|id| KeyId::from_bytes(*id)).collect();
    key_ids.sort_unstable();
    let entitled: Vec<Entitlement> = serde_json::from_str(&text("entitled")?).map_err(|_| damaged())?;
    Ok(Header {
        source: text("source_kme")?.parse().map_err(|_| damaged())?,
        master: text("master_sae")?.parse().map_err(|_| damaged())?,
        recipients: serde_json::from_str(&text("recipients")?).map_err(|_| damaged())?,
        entitled,
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
