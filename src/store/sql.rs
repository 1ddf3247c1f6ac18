//! Every statement of the store, in SQLite's dialect.
//!
//! Columns are TEXT, INTEGER (64 bits) and BLOB only, parameters `$1`..., times in milliseconds, so that a
//! second dialect differs in three places: `BEGIN IMMEDIATE`, the packed IDs below, and the pragmas of
//! [`super::connect`]. Nothing here reads the clock.
//!
//! A set of IDs travels as one BLOB of 16 bytes for each, cut up inside the statement: one statement and
//! one parameter for any number of IDs, and no text form of anything. (Postgres: `unnest($1)`.)

/// Prefixes a statement with the table `ids(i, id)`: the IDs packed in `$1`, which must not be empty.
macro_rules! with_packed_ids {
    ($sql:literal) => {
        concat!(
            "WITH RECURSIVE ids(i, id) AS (SELECT 0, substr($1, 1, 16) UNION ALL ",
            "SELECT i + 1, substr($1, 16 * (i + 1) + 1, 16) FROM ids WHERE i + 1 < length($1) / 16) ",
            $sql
        )
    };
}

pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
pub(super) const COMMIT: &str = "COMMIT";
pub(super) const ROLLBACK: &str = "ROLLBACK";
pub(super) const CHECKPOINT: &str = "PRAGMA wal_checkpoint(PASSIVE)";
pub(super) const PING: &str = "SELECT 1 FROM batches LIMIT 1";

pub(super) const HAS_MIGRATIONS: &str =
    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'";
pub(super) const SCHEMA_VERSION: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations";

pub(super) const DATA_KEYS: &str = "SELECT data_key_id, kek_id, wrapped FROM data_keys \
     ORDER BY created_at_ms DESC, data_key_id LIMIT $1";
pub(super) const DATA_KEY: &str = "SELECT kek_id, wrapped FROM data_keys WHERE data_key_id = $1";
pub(super) const INSERT_DATA_KEY: &str = "INSERT INTO data_keys (data_key_id, kek_id, wrapped, created_at_ms) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (data_key_id) DO NOTHING";

pub(super) const BATCH: &str =
    "SELECT source_kme, content_digest, state, key_ids FROM batches WHERE batch_id = $1";
pub(super) const TOMBSTONE: &str = "SELECT count(*) FROM tombstones WHERE batch_id = $1 AND source_kme = $2";
pub(super) const KEYS_IN_USE: &str =
    with_packed_ids!("SELECT count(*) FROM ids CROSS JOIN keys ON keys.key_id = ids.id");
pub(super) const INSERT_BATCH: &str = "INSERT INTO batches (batch_id, source_kme, master_sae, recipients, \
     entitled, key_bytes, key_ids, data_key_id, content_digest, state, created_at_ms, expires_at_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'stored', $10, $11)";
/// `$2` the batch, `$3` the sealed keys one after the other, `$4` the length of one.
pub(super) const INSERT_KEYS: &str = with_packed_ids!(
    "INSERT INTO keys (key_id, batch_id, sealed) SELECT id, $2, substr($3, $4 * i + 1, $4) FROM ids"
);

/// One row for each key and retrieval of it; keys of expired batches (at `$2`) are left out.
pub(super) const KEYS: &str = with_packed_ids!(
    "SELECT k.key_id, k.batch_id, k.sealed, k.erase_at_ms, b.source_kme, b.master_sae, b.recipients, \
     b.entitled, b.data_key_id, r.party, r.retrieved_by, r.retrieved_at_ms \
     FROM ids CROSS JOIN keys k ON k.key_id = ids.id JOIN batches b ON b.batch_id = k.batch_id \
     LEFT JOIN retrievals r ON r.key_id = k.key_id WHERE b.expires_at_ms > $2"
);
pub(super) const INSERT_RETRIEVALS: &str = with_packed_ids!(
    "INSERT INTO retrievals (key_id, party, retrieved_by, retrieved_at_ms) SELECT id, $2, $3, $4 FROM ids \
     WHERE true ON CONFLICT (key_id, party) DO NOTHING"
);
pub(super) const ERASE_LATER: &str =
    with_packed_ids!("UPDATE keys SET erase_at_ms = $2 WHERE key_id IN (SELECT id FROM ids)");
pub(super) const ERASE_KEYS: &str = with_packed_ids!("DELETE FROM keys WHERE key_id IN (SELECT id FROM ids)");

/// Of the packed IDs, those with a row in batch `$2`: whether voided, and how many retrievals.
pub(super) const VOIDABLE: &str = with_packed_ids!(
    "SELECT k.key_id, k.sealed IS NULL, (SELECT count(*) FROM retrievals r WHERE r.key_id = k.key_id) \
     FROM ids CROSS JOIN keys k ON k.key_id = ids.id WHERE k.batch_id = $2"
);
pub(super) const VOID_KEYS: &str =
    with_packed_ids!("UPDATE keys SET sealed = NULL WHERE key_id IN (SELECT id FROM ids)");
pub(super) const VOID_BATCH: &str = "UPDATE batches SET state = 'voided' WHERE batch_id = $1";
pub(super) const INSERT_TOMBSTONE: &str = "INSERT INTO tombstones (batch_id, source_kme, expires_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (batch_id, source_kme) DO NOTHING";

/// Only for a batch that is stored: one that was voided meanwhile stays out.
pub(super) const INSERT_READY: &str = "INSERT INTO ready_blocks (batch_id, master_sae, recipient, key_ids, \
     grade, usable_until_ms) SELECT batch_id, $2, $3, $4, $5, $6 FROM batches \
     WHERE batch_id = $1 AND state = 'stored' ON CONFLICT (batch_id) DO NOTHING";
/// Blocks of a pair, those that end first in front. (Postgres: `FOR UPDATE OF r SKIP LOCKED`.)
pub(super) const READY: &str = "SELECT r.batch_id, r.key_ids, r.grade, r.usable_until_ms, b.created_at_ms, \
     b.expires_at_ms, b.data_key_id, b.entitled \
     FROM ready_blocks r JOIN batches b ON b.batch_id = r.batch_id \
     WHERE r.master_sae = $1 AND r.recipient = $2 AND r.usable_until_ms > $3 \
     ORDER BY r.usable_until_ms, r.batch_id LIMIT $4";
pub(super) const READY_KEYS: &str = with_packed_ids!(
    "SELECT k.key_id, k.sealed FROM ids CROSS JOIN keys k ON k.key_id = ids.id \
     WHERE k.batch_id = $2 AND k.sealed IS NOT NULL ORDER BY ids.i"
);
/// State of a batch, the length of its list of keys and of the list of those that are ready.
pub(super) const READINESS: &str = "SELECT b.state, length(b.key_ids), \
     (SELECT length(r.key_ids) FROM ready_blocks r WHERE r.batch_id = b.batch_id) \
     FROM batches b WHERE b.batch_id = $1";
pub(super) const DELETE_READY: &str = "DELETE FROM ready_blocks WHERE batch_id = $1";
pub(super) const COUNT_READY: &str = "SELECT coalesce(sum(length(key_ids) / 16), 0) FROM ready_blocks \
     WHERE master_sae = $1 AND recipient = $2 AND usable_until_ms > $3";

pub(super) const SWEEP_READY: &str = "DELETE FROM ready_blocks WHERE batch_id IN \
     (SELECT batch_id FROM ready_blocks WHERE usable_until_ms <= $1 LIMIT $2)";
pub(super) const SWEEP_RETRIEVED: &str = "DELETE FROM keys WHERE key_id IN \
     (SELECT key_id FROM keys WHERE erase_at_ms <= $1 LIMIT $2)";
pub(super) const SWEEP_EXPIRED_KEYS: &str = "DELETE FROM keys WHERE key_id IN \
     (SELECT k.key_id FROM batches b CROSS JOIN keys k ON k.batch_id = b.batch_id \
     WHERE b.expires_at_ms <= $1 LIMIT $2)";
pub(super) const SWEEP_BATCHES: &str = "DELETE FROM batches WHERE batch_id IN \
     (SELECT b.batch_id FROM batches b WHERE b.expires_at_ms <= $1 \
     AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.batch_id = b.batch_id) \
     AND NOT EXISTS (SELECT 1 FROM ready_blocks r WHERE r.batch_id = b.batch_id) LIMIT $2)";
pub(super) const SWEEP_TOMBSTONES: &str = "DELETE FROM tombstones WHERE (batch_id, source_kme) IN \
     (SELECT batch_id, source_kme FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2)";
/// `$1` is the data key in use, which stays.
pub(super) const SWEEP_DATA_KEYS: &str = "DELETE FROM data_keys WHERE data_key_id IN \
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.data_key_id = d.data_key_id) LIMIT $2)";

pub(super) const COUNTS: &str =
    "SELECT (SELECT count(*) FROM batches), (SELECT count(*) FROM keys WHERE sealed IS NOT NULL)";
