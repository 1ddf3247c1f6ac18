//! The statements of the verbs, for both databases.
//!
//! Columns are TEXT, 64-bit integers or bytes; parameters are `$1`...; times are milliseconds. No statement
//! reads the clock.
//!
//! A set of IDs is one parameter, 16 bytes for each ID, which the statement splits. So one text serves any
//! number of IDs.
//!
//! On SQLite a transaction has the database to itself. On Postgres others run beside it (READ COMMITTED), so
//! rows are locked before a decision reads them (`super::locks`), and statements that may choose their rows
//! skip locked ones (`SKIP LOCKED`). A bounded choice of rows is in `ARRAY(...)`, which is evaluated once; a
//! join may evaluate it many times. `OFFSET 0` and `+ 0` keep the planner from the wrong index: one that
//! reads all keys of a batch to find some of them, or the blocks of all pairs.

use crate::store::connection::Sql;

/// As `with_packed_ids`, for Postgres only.
macro_rules! postgres_packed {
    ($sql:literal) => {
        concat!(
            "WITH ids(i, id) AS (SELECT i, substr($1, 16 * i + 1, 16) ",
            "FROM generate_series(0, length($1) / 16 - 1) AS i) ",
            $sql
        )
    };
}

/// Prefixes a statement with the table `ids(i, id)`: the IDs packed in `$1`, which must not be empty.
macro_rules! with_packed_ids {
    ($sql:literal) => {
        with_packed_ids!($sql, $sql)
    };
    ($sqlite:literal, $postgres:literal) => {
        Sql {
            sqlite: concat!(
                "WITH RECURSIVE ids(i, id) AS (SELECT 0, substr($1, 1, 16) UNION ALL ",
                "SELECT i + 1, substr($1, 16 * (i + 1) + 1, 16) FROM ids WHERE i + 1 < length($1) / 16) ",
                $sqlite
            ),
            postgres: postgres_packed!($postgres),
        }
    };
}

/// A statement whose Postgres text differs.
macro_rules! sql {
    ($sqlite:expr, $postgres:expr) => {
        Sql { sqlite: $sqlite, postgres: $postgres }
    };
}

pub(crate) const DATA_KEYS: Sql = Sql::same(
    "SELECT data_key_id, kek_id, wrapped FROM data_keys ORDER BY created_at_ms DESC, data_key_id LIMIT $1",
);
pub(crate) const DATA_KEY: Sql = Sql::same("SELECT kek_id, wrapped FROM data_keys WHERE data_key_id = $1");
pub(crate) const INSERT_DATA_KEY: Sql = Sql::same(
    "INSERT INTO data_keys (data_key_id, kek_id, wrapped, created_at_ms) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (data_key_id) DO NOTHING",
);

pub(crate) const BATCH: Sql =
    Sql::same("SELECT source_kme, content_digest, state, key_ids FROM batches WHERE batch_id = $1");
pub(crate) const TOMBSTONE: Sql =
    Sql::same("SELECT count(*) FROM tombstones WHERE batch_id = $1 AND source_kme = $2");
pub(crate) const KEYS_IN_USE: Sql =
    with_packed_ids!("SELECT count(*) FROM ids CROSS JOIN keys k WHERE k.key_id = ids.id");
pub(crate) const INSERT_BATCH: Sql = Sql::same(
    "INSERT INTO batches (batch_id, source_kme, master_sae, recipients, \
     entitled, key_bytes, key_ids, data_key_id, content_digest, state, created_at_ms, expires_at_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'stored', $10, $11)",
);
/// `$2` the batch, `$3` the sealed keys one after the other, `$4` the length of one.
pub(crate) const INSERT_KEYS: Sql = with_packed_ids!(
    "INSERT INTO keys (key_id, batch_id, sealed) SELECT id, $2, substr($3, $4 * i + 1, $4) FROM ids",
    "INSERT INTO keys (key_id, batch_id, sealed) \
     SELECT id, $2, substr($3, CAST($4 AS INTEGER) * i + 1, CAST($4 AS INTEGER)) FROM ids"
);

/// One row for each key and retrieval of it.
pub(crate) const KEYS: Sql = with_packed_ids!(
    "SELECT k.key_id, k.batch_id, k.sealed, k.erase_at_ms, r.party, r.retrieved_by, r.retrieved_at_ms \
     FROM ids CROSS JOIN keys k LEFT JOIN retrievals r ON r.key_id = k.key_id WHERE k.key_id = ids.id"
);
/// What the keys of the packed batches have in common. Separate from [`KEYS`], because SQLite would read the
/// long row of a batch again for each key.
pub(crate) const BATCHES: Sql = with_packed_ids!(
    "SELECT b.batch_id, b.source_kme, b.master_sae, b.recipients, b.entitled, b.data_key_id, b.expires_at_ms \
     FROM ids CROSS JOIN batches b WHERE b.batch_id = ids.id"
);
/// Erases those of the packed keys that nobody has touched, and returns them.
pub(crate) const TAKE_FRESH: Sql = with_packed_ids!(
    "DELETE FROM keys WHERE key_id IN (SELECT id FROM ids) AND sealed IS NOT NULL AND erase_at_ms IS NULL \
     AND NOT EXISTS (SELECT 1 FROM retrievals r WHERE r.key_id = keys.key_id) \
     RETURNING key_id, batch_id, sealed",
    ", locked AS (SELECT key_id FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) \
     AND sealed IS NOT NULL AND erase_at_ms IS NULL ORDER BY key_id FOR UPDATE) \
     DELETE FROM keys k WHERE k.key_id = ANY(ARRAY(SELECT key_id FROM locked)) \
     AND k.sealed IS NOT NULL AND k.erase_at_ms IS NULL \
     AND NOT EXISTS (SELECT 1 FROM retrievals r WHERE r.key_id = k.key_id) \
     RETURNING k.key_id, k.batch_id, k.sealed"
);
pub(crate) const INSERT_RETRIEVALS: Sql = with_packed_ids!(
    "INSERT INTO retrievals (key_id, party, retrieved_by, retrieved_at_ms) SELECT id, $2, $3, $4 FROM ids \
     WHERE true ON CONFLICT (key_id, party) DO NOTHING"
);
pub(crate) const ERASE_LATER: Sql = with_packed_ids!(
    "UPDATE keys SET erase_at_ms = $2 WHERE key_id IN (SELECT id FROM ids)",
    "UPDATE keys SET erase_at_ms = $2 WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);
pub(crate) const ERASE_KEYS: Sql = with_packed_ids!(
    "DELETE FROM keys WHERE key_id IN (SELECT id FROM ids)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);

/// For each of the packed keys with a row in batch `$2`: whether it is voided, and how many retrievals it
/// has.
pub(crate) const VOIDABLE: Sql = with_packed_ids!(
    "SELECT k.key_id, CASE WHEN k.sealed IS NULL THEN 1 ELSE 0 END, \
     (SELECT count(*) FROM retrievals r WHERE r.key_id = k.key_id) \
     FROM ids CROSS JOIN keys k WHERE k.key_id = ids.id AND k.batch_id = $2",
    "SELECT k.key_id, CASE WHEN k.sealed IS NULL THEN 1 ELSE 0 END, \
     (SELECT count(*) FROM retrievals r WHERE r.key_id = k.key_id) \
     FROM (SELECT key_id, batch_id, sealed FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) OFFSET 0) k \
     WHERE k.batch_id = $2"
);
pub(crate) const VOID_KEYS: Sql = with_packed_ids!(
    "UPDATE keys SET sealed = NULL WHERE key_id IN (SELECT id FROM ids)",
    "UPDATE keys SET sealed = NULL WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);
pub(crate) const VOID_BATCH: Sql = Sql::same("UPDATE batches SET state = 'voided' WHERE batch_id = $1");
pub(crate) const INSERT_TOMBSTONE: Sql = Sql::same(
    "INSERT INTO tombstones (batch_id, source_kme, expires_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (batch_id, source_kme) DO NOTHING",
);

/// Does nothing for a voided batch.
pub(crate) const INSERT_READY: Sql = Sql::same(
    "INSERT INTO ready_blocks (batch_id, master_sae, recipient, key_ids, \
     grade, usable_until_ms, sealed) SELECT batch_id, $2, $3, $4, $5, $6, $7 FROM batches \
     WHERE batch_id = $1 AND state = 'stored' ON CONFLICT (batch_id) DO NOTHING",
);
macro_rules! ready {
    ($lock:literal) => {
        concat!(
            "SELECT r.batch_id, r.key_ids, r.sealed, r.grade, r.usable_until_ms, b.created_at_ms, \
             b.expires_at_ms, b.data_key_id, b.entitled \
             FROM ready_blocks r JOIN batches b ON b.batch_id = r.batch_id \
             WHERE r.master_sae = $1 AND r.recipient = $2 AND r.usable_until_ms > $3 \
             ORDER BY r.usable_until_ms, r.batch_id LIMIT $4 + 0",
            $lock
        )
    };
}
/// Blocks of a pair, earliest end first, without those that another daemon is taking. (`$4 + 0`: with a bare
/// parameter after LIMIT, SQLite prepares the statement again for each value.)
pub(crate) const READY: Sql = sql!(ready!(""), ready!(" FOR UPDATE OF r SKIP LOCKED"));
pub(crate) const READY_KEYS: Sql = with_packed_ids!(
    "SELECT k.key_id, k.sealed FROM ids CROSS JOIN keys k \
     WHERE k.key_id = ids.id AND k.batch_id = $2 AND k.sealed IS NOT NULL ORDER BY ids.i",
    "SELECT k.key_id, k.sealed \
     FROM (SELECT key_id, batch_id, sealed FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) OFFSET 0) k \
     WHERE k.batch_id = $2 AND k.sealed IS NOT NULL ORDER BY k.key_id"
);
/// State of a batch, length of its list of keys, length of its list of ready keys.
pub(crate) const READINESS: Sql = Sql::same(
    "SELECT b.state, length(b.key_ids), \
     (SELECT length(r.key_ids) FROM ready_blocks r WHERE r.batch_id = b.batch_id) \
     FROM batches b WHERE b.batch_id = $1",
);
/// For the packed batches.
pub(crate) const DELETE_READY: Sql = with_packed_ids!(
    "DELETE FROM ready_blocks WHERE batch_id IN (SELECT id FROM ids)",
    "DELETE FROM ready_blocks WHERE batch_id = ANY(ARRAY(SELECT id FROM ids))"
);
/// Makes the next lease of the packed batches look up each key.
pub(crate) const DISTRUST_READY: Sql = with_packed_ids!(
    "UPDATE ready_blocks SET sealed = NULL WHERE batch_id IN (SELECT id FROM ids) AND sealed IS NOT NULL",
    "UPDATE ready_blocks SET sealed = NULL WHERE batch_id = ANY(ARRAY(SELECT id FROM ids)) AND sealed IS NOT NULL"
);
pub(crate) const COUNT_READY: Sql = Sql::same(
    "SELECT coalesce(sum(length(key_ids) / 16), 0) FROM ready_blocks \
     WHERE master_sae = $1 AND recipient = $2 AND usable_until_ms > $3",
);

/// Batches after `$1`, each with the number of its rows in `keys`.
pub(crate) const COUNT_BATCHES: Sql = Sql::same(
    "SELECT b.batch_id, b.source_kme, b.master_sae, b.key_bytes, b.state, \
     (SELECT count(*) FROM keys k WHERE k.batch_id = b.batch_id) \
     FROM batches b WHERE b.batch_id > $1 ORDER BY b.batch_id LIMIT $2",
);
pub(crate) const COUNT_TOMBSTONES: Sql =
    Sql::same("SELECT source_kme, count(*) FROM tombstones GROUP BY source_kme");

/// (`+ 0`: the Postgres index by end is on this expression, so that no lease uses it.)
pub(crate) const SWEEP_READY: Sql = sql!(
    "DELETE FROM ready_blocks WHERE batch_id IN \
     (SELECT batch_id FROM ready_blocks WHERE usable_until_ms <= $1 LIMIT $2)",
    "DELETE FROM ready_blocks WHERE batch_id = ANY(ARRAY\
     (SELECT batch_id FROM ready_blocks WHERE usable_until_ms + 0 <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
pub(crate) const SWEEP_RETRIEVED: Sql = sql!(
    "DELETE FROM keys WHERE key_id IN (SELECT key_id FROM keys WHERE erase_at_ms <= $1 LIMIT $2)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY\
     (SELECT key_id FROM keys WHERE erase_at_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
/// Looks only at the batches that expired first, at most as many as rows may be erased; [`SWEEP_BATCHES`]
/// looks at the same ones. So no chunk reads all expired rows.
pub(crate) const SWEEP_EXPIRED_KEYS: Sql = sql!(
    "DELETE FROM keys WHERE key_id IN \
     (SELECT k.key_id FROM \
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2) b \
     CROSS JOIN keys k ON k.batch_id = b.batch_id LIMIT $2)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY\
     (SELECT key_id FROM keys WHERE batch_id = ANY(ARRAY\
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2)) \
     LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
pub(crate) const SWEEP_BATCHES: Sql = sql!(
    "DELETE FROM batches WHERE batch_id IN \
     (SELECT b.batch_id FROM \
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2) b \
     WHERE NOT EXISTS (SELECT 1 FROM keys k WHERE k.batch_id = b.batch_id) \
     AND NOT EXISTS (SELECT 1 FROM ready_blocks r WHERE r.batch_id = b.batch_id))",
    "DELETE FROM batches WHERE batch_id = ANY(ARRAY\
     (SELECT b.batch_id FROM batches b WHERE b.batch_id = ANY(ARRAY\
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2)) \
     AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.batch_id = b.batch_id) \
     AND NOT EXISTS (SELECT 1 FROM ready_blocks r WHERE r.batch_id = b.batch_id) \
     FOR UPDATE OF b SKIP LOCKED))"
);
pub(crate) const SWEEP_TOMBSTONES: Sql = sql!(
    "DELETE FROM tombstones WHERE (batch_id, source_kme) IN \
     (SELECT batch_id, source_kme FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2)",
    "DELETE FROM tombstones WHERE ctid = ANY(ARRAY\
     (SELECT ctid FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
/// `$1` is the data key that this process seals with; it stays.
pub(crate) const SWEEP_DATA_KEYS: Sql = sql!(
    "DELETE FROM data_keys WHERE data_key_id IN \
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.data_key_id = d.data_key_id) LIMIT $2)",
    "DELETE FROM data_keys WHERE data_key_id = ANY(ARRAY\
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.data_key_id = d.data_key_id) \
     LIMIT $2 FOR UPDATE OF d SKIP LOCKED))"
);

// Postgres only.

pub(crate) const SWEEP_MARKS: &str = "DELETE FROM commit_marks WHERE marked_at_ms <= $1";
/// At most 512 locks for any number of batches, because the server's table of locks is small. Batches that
/// share a lock only wait for each other. The schema is part of the lock: two sites in one database have the
/// same batches.
pub(crate) const LOCK_BATCHES: &str = postgres_packed!(
    "SELECT pg_advisory_xact_lock(hashtext('dqkd batch ' || current_schema()), lock) FROM \
     (SELECT DISTINCT hashtext(encode(id, 'hex')) & 511 AS lock FROM ids ORDER BY 1) AS sorted"
);
pub(crate) const KEYS_OF_BATCHES: &str =
    postgres_packed!("SELECT key_ids FROM batches WHERE batch_id = ANY(ARRAY(SELECT id FROM ids))");
pub(crate) const LOCK_KEYS: &str = postgres_packed!(
    "SELECT key_id FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) ORDER BY key_id FOR UPDATE"
);
pub(crate) const LOCK_READY: &str = postgres_packed!(
    "SELECT batch_id FROM ready_blocks WHERE batch_id = ANY(ARRAY(SELECT id FROM ids)) \
     ORDER BY batch_id FOR UPDATE"
);
