//! Every statement of the store, in both dialects.
//!
//! Columns are TEXT, 64-bit integers and bytes only, parameters `$1`..., times in milliseconds. Nothing here
//! reads the clock. Where one text means the same to both databases it stands once.
//!
//! A set of IDs travels as one parameter of 16 bytes for each, cut up inside the statement: one statement for
//! any number of IDs, and no text form of anything.
//!
//! On SQLite a transaction has the database to itself. On Postgres others run beside it (READ COMMITTED), so
//! rows that are looked at before they are changed are locked first (`super::locks`), and what may be passed
//! over is (`SKIP LOCKED`). A bounded choice of rows stands in `ARRAY(...)`, which is evaluated once; in a join
//! the planner may evaluate it again and again. `OFFSET 0` and `+ 0` keep it from an index that finds all keys of a
//! batch where some are wanted, or the blocks of all pairs in the wanted order.

use super::dialect::Sql;

/// As [`with_packed_ids`], for Postgres alone.
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

/// A copy's session may be silent while the other database works.
pub(super) const PATIENT_SESSION: &str =
    "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
/// Other sessions of this role in this database: daemons, as far as can be told from outside.
pub(super) const OTHER_SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()";
/// Begins a transaction in which nobody else changes the tables.
pub(super) const HOLD_SOURCE: Sql = sql!(
    "BEGIN IMMEDIATE",
    "BEGIN; LOCK TABLE data_keys, batches, keys, retrievals, ready_blocks, tombstones IN SHARE MODE"
);
/// Begins a transaction in which nobody else sees the tables.
pub(super) const HOLD_TARGET: Sql = sql!(
    "BEGIN IMMEDIATE",
    "BEGIN; LOCK TABLE data_keys, batches, keys, retrievals, ready_blocks, tombstones IN ACCESS EXCLUSIVE MODE"
);
pub(super) const DATA_KEY_OF_BATCH: &str = "SELECT data_key_id FROM batches WHERE batch_id = $1";

pub(super) const ROLLBACK: &str = "ROLLBACK";
pub(super) const PING: Sql = Sql::same("SELECT 1 FROM batches LIMIT 1");

pub(super) const HAS_MIGRATIONS: Sql = sql!(
    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
    "SELECT CASE WHEN to_regclass('_sqlx_migrations') IS NULL THEN 0 ELSE 1 END"
);
pub(super) const SCHEMA_VERSION: Sql = Sql::same("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");

pub(super) const DATA_KEYS: Sql = Sql::same(
    "SELECT data_key_id, kek_id, wrapped FROM data_keys ORDER BY created_at_ms DESC, data_key_id LIMIT $1",
);
pub(super) const DATA_KEY: Sql = Sql::same("SELECT kek_id, wrapped FROM data_keys WHERE data_key_id = $1");
pub(super) const INSERT_DATA_KEY: Sql = Sql::same(
    "INSERT INTO data_keys (data_key_id, kek_id, wrapped, created_at_ms) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (data_key_id) DO NOTHING",
);

pub(super) const BATCH: Sql =
    Sql::same("SELECT source_kme, content_digest, state, key_ids FROM batches WHERE batch_id = $1");
pub(super) const TOMBSTONE: Sql =
    Sql::same("SELECT count(*) FROM tombstones WHERE batch_id = $1 AND source_kme = $2");
pub(super) const KEYS_IN_USE: Sql =
    with_packed_ids!("SELECT count(*) FROM ids CROSS JOIN keys k WHERE k.key_id = ids.id");
pub(super) const INSERT_BATCH: Sql = Sql::same(
    "INSERT INTO batches (batch_id, source_kme, master_sae, recipients, \
     entitled, key_bytes, key_ids, data_key_id, content_digest, state, created_at_ms, expires_at_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'stored', $10, $11)",
);
/// `$2` the batch, `$3` the sealed keys one after the other, `$4` the length of one.
pub(super) const INSERT_KEYS: Sql = with_packed_ids!(
    "INSERT INTO keys (key_id, batch_id, sealed) SELECT id, $2, substr($3, $4 * i + 1, $4) FROM ids",
    "INSERT INTO keys (key_id, batch_id, sealed) \
     SELECT id, $2, substr($3, CAST($4 AS INTEGER) * i + 1, CAST($4 AS INTEGER)) FROM ids"
);

/// One row for each key and retrieval of it.
pub(super) const KEYS: Sql = with_packed_ids!(
    "SELECT k.key_id, k.batch_id, k.sealed, k.erase_at_ms, r.party, r.retrieved_by, r.retrieved_at_ms \
     FROM ids CROSS JOIN keys k LEFT JOIN retrievals r ON r.key_id = k.key_id WHERE k.key_id = ids.id"
);
/// What the packed batches say of their keys. Apart from [`KEYS`]: a batch's row is long, and SQLite would read all
/// of it again for each of its keys.
pub(super) const BATCHES: Sql = with_packed_ids!(
    "SELECT b.batch_id, b.source_kme, b.master_sae, b.recipients, b.entitled, b.data_key_id, b.expires_at_ms \
     FROM ids CROSS JOIN batches b WHERE b.batch_id = ids.id"
);
/// Erases those of the packed keys that nobody has touched, and returns what they were.
pub(super) const TAKE_FRESH: Sql = with_packed_ids!(
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
pub(super) const INSERT_RETRIEVALS: Sql = with_packed_ids!(
    "INSERT INTO retrievals (key_id, party, retrieved_by, retrieved_at_ms) SELECT id, $2, $3, $4 FROM ids \
     WHERE true ON CONFLICT (key_id, party) DO NOTHING"
);
pub(super) const ERASE_LATER: Sql = with_packed_ids!(
    "UPDATE keys SET erase_at_ms = $2 WHERE key_id IN (SELECT id FROM ids)",
    "UPDATE keys SET erase_at_ms = $2 WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);
pub(super) const ERASE_KEYS: Sql = with_packed_ids!(
    "DELETE FROM keys WHERE key_id IN (SELECT id FROM ids)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);

/// Of the packed IDs, those with a row in batch `$2`: whether voided, and how many retrievals.
pub(super) const VOIDABLE: Sql = with_packed_ids!(
    "SELECT k.key_id, CASE WHEN k.sealed IS NULL THEN 1 ELSE 0 END, \
     (SELECT count(*) FROM retrievals r WHERE r.key_id = k.key_id) \
     FROM ids CROSS JOIN keys k WHERE k.key_id = ids.id AND k.batch_id = $2",
    "SELECT k.key_id, CASE WHEN k.sealed IS NULL THEN 1 ELSE 0 END, \
     (SELECT count(*) FROM retrievals r WHERE r.key_id = k.key_id) \
     FROM (SELECT key_id, batch_id, sealed FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) OFFSET 0) k \
     WHERE k.batch_id = $2"
);
pub(super) const VOID_KEYS: Sql = with_packed_ids!(
    "UPDATE keys SET sealed = NULL WHERE key_id IN (SELECT id FROM ids)",
    "UPDATE keys SET sealed = NULL WHERE key_id = ANY(ARRAY(SELECT id FROM ids))"
);
pub(super) const VOID_BATCH: Sql = Sql::same("UPDATE batches SET state = 'voided' WHERE batch_id = $1");
pub(super) const INSERT_TOMBSTONE: Sql = Sql::same(
    "INSERT INTO tombstones (batch_id, source_kme, expires_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (batch_id, source_kme) DO NOTHING",
);

/// Only for a batch that is stored: one that was voided meanwhile stays out.
pub(super) const INSERT_READY: Sql = Sql::same(
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
/// (`$4 + 0`: SQLite would prepare a statement anew for each value of a bare parameter after LIMIT.)
/// Blocks of a pair, those that end first in front, but none that another daemon is about to take.
pub(super) const READY: Sql = sql!(ready!(""), ready!(" FOR UPDATE OF r SKIP LOCKED"));
pub(super) const READY_KEYS: Sql = with_packed_ids!(
    "SELECT k.key_id, k.sealed FROM ids CROSS JOIN keys k \
     WHERE k.key_id = ids.id AND k.batch_id = $2 AND k.sealed IS NOT NULL ORDER BY ids.i",
    "SELECT k.key_id, k.sealed \
     FROM (SELECT key_id, batch_id, sealed FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) OFFSET 0) k \
     WHERE k.batch_id = $2 AND k.sealed IS NOT NULL ORDER BY k.key_id"
);
/// State of a batch, the length of its list of keys and of the list of those that are ready.
pub(super) const READINESS: Sql = Sql::same(
    "SELECT b.state, length(b.key_ids), \
     (SELECT length(r.key_ids) FROM ready_blocks r WHERE r.batch_id = b.batch_id) \
     FROM batches b WHERE b.batch_id = $1",
);
/// Of the packed batches.
pub(super) const DELETE_READY: Sql = with_packed_ids!(
    "DELETE FROM ready_blocks WHERE batch_id IN (SELECT id FROM ids)",
    "DELETE FROM ready_blocks WHERE batch_id = ANY(ARRAY(SELECT id FROM ids))"
);
/// What is listed of the packed batches is then looked up key by key when it is leased.
pub(super) const DISTRUST_READY: Sql = with_packed_ids!(
    "UPDATE ready_blocks SET sealed = NULL WHERE batch_id IN (SELECT id FROM ids) AND sealed IS NOT NULL",
    "UPDATE ready_blocks SET sealed = NULL WHERE batch_id = ANY(ARRAY(SELECT id FROM ids)) AND sealed IS NOT NULL"
);
pub(super) const COUNT_READY: Sql = Sql::same(
    "SELECT coalesce(sum(length(key_ids) / 16), 0) FROM ready_blocks \
     WHERE master_sae = $1 AND recipient = $2 AND usable_until_ms > $3",
);

/// (`+ 0`: Postgres has the index by end on that, so that no lease goes by it through the blocks of all pairs.)
pub(super) const SWEEP_READY: Sql = sql!(
    "DELETE FROM ready_blocks WHERE batch_id IN \
     (SELECT batch_id FROM ready_blocks WHERE usable_until_ms <= $1 LIMIT $2)",
    "DELETE FROM ready_blocks WHERE batch_id = ANY(ARRAY\
     (SELECT batch_id FROM ready_blocks WHERE usable_until_ms + 0 <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
pub(super) const SWEEP_RETRIEVED: Sql = sql!(
    "DELETE FROM keys WHERE key_id IN (SELECT key_id FROM keys WHERE erase_at_ms <= $1 LIMIT $2)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY\
     (SELECT key_id FROM keys WHERE erase_at_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
/// Of the batches that expired first, as many as rows may be erased, and [`SWEEP_BATCHES`] looks at the same: a long row of
/// expired batches, with keys or without, must not be walked through for each of its pieces.
pub(super) const SWEEP_EXPIRED_KEYS: Sql = sql!(
    "DELETE FROM keys WHERE key_id IN \
     (SELECT k.key_id FROM \
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2) b \
     CROSS JOIN keys k ON k.batch_id = b.batch_id LIMIT $2)",
    "DELETE FROM keys WHERE key_id = ANY(ARRAY\
     (SELECT key_id FROM keys WHERE batch_id = ANY(ARRAY\
     (SELECT batch_id FROM batches WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2)) \
     LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
pub(super) const SWEEP_BATCHES: Sql = sql!(
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
pub(super) const SWEEP_TOMBSTONES: Sql = sql!(
    "DELETE FROM tombstones WHERE (batch_id, source_kme) IN \
     (SELECT batch_id, source_kme FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2)",
    "DELETE FROM tombstones WHERE ctid = ANY(ARRAY\
     (SELECT ctid FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
/// `$1` is the data key in use, which stays.
pub(super) const SWEEP_DATA_KEYS: Sql = sql!(
    "DELETE FROM data_keys WHERE data_key_id IN \
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.data_key_id = d.data_key_id) LIMIT $2)",
    "DELETE FROM data_keys WHERE data_key_id = ANY(ARRAY\
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.data_key_id = d.data_key_id) \
     LIMIT $2 FOR UPDATE OF d SKIP LOCKED))"
);

pub(super) const COUNTS: Sql =
    Sql::same("SELECT (SELECT count(*) FROM batches), (SELECT count(*) FROM keys WHERE sealed IS NOT NULL)");

pub(super) const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";
pub(super) const COMMIT: &str = "COMMIT";
/// SQLite.
pub(super) const CHECKPOINT: &str = "PRAGMA wal_checkpoint(PASSIVE)";

// Postgres alone.

pub(super) const BE_PATIENT: &str = "SET statement_timeout = '10min'; SET lock_timeout = '10min'";
/// Back to what the connection was made with.
pub(super) const BE_HASTY: &str = "RESET statement_timeout; RESET lock_timeout";

/// The token in a writer's mark; `$2` when there is no mark. Waits for a transaction that is changing it.
pub(super) const TAKE_MARK: &str = "INSERT INTO commit_marks (writer, token, marked_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (writer) DO UPDATE SET token = commit_marks.token RETURNING token";
pub(super) const SWEEP_MARKS: &str = "DELETE FROM commit_marks WHERE marked_at_ms <= $1";
/// At most 512 locks, however many batches: the server's table of locks is small. Batches that share one only wait
/// for each other. Two sites in one database (each with a schema of its own) have the same batches.
pub(super) const LOCK_BATCHES: &str = postgres_packed!(
    "SELECT pg_advisory_xact_lock(hashtext('dqkd batch ' || current_schema()), lock) FROM \
     (SELECT DISTINCT hashtext(encode(id, 'hex')) & 511 AS lock FROM ids ORDER BY 1) AS sorted"
);
pub(super) const KEYS_OF_BATCHES: &str =
    postgres_packed!("SELECT key_ids FROM batches WHERE batch_id = ANY(ARRAY(SELECT id FROM ids))");
pub(super) const LOCK_KEYS: &str = postgres_packed!(
    "SELECT key_id FROM keys WHERE key_id = ANY(ARRAY(SELECT id FROM ids)) ORDER BY key_id FOR UPDATE"
);
pub(super) const LOCK_READY: &str = postgres_packed!(
    "SELECT batch_id FROM ready_blocks WHERE batch_id = ANY(ARRAY(SELECT id FROM ids)) \
     ORDER BY batch_id FOR UPDATE"
);
