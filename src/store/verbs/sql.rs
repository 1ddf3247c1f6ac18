//! The statements of the verbs, for both databases.
//!
//! Columns are TEXT, 64-bit integers or bytes; parameters are `$1`...; times are milliseconds. No statement
//! reads the clock. A list of numbers is one parameter, as the text of an array ([`numbers`]).
//!
//! On SQLite a transaction has the database to itself. On Postgres others run beside it (READ COMMITTED). A
//! statement that reads records to change them locks them in the order of batch IDs (`super::locks`), by `FOR
//! UPDATE`, which returns what was committed last. One that may choose its rows skips those that are locked
//! (`SKIP LOCKED`). A bounded choice of rows is in `ARRAY(...)`, which is evaluated once; a join may evaluate it
//! many times.

use std::fmt::Write as _;

use kme::BatchId;

use crate::store::connection::{Dialect, Sql};

/// A statement whose Postgres text differs.
macro_rules! sql {
    ($sqlite:expr, $postgres:expr) => {
        Sql { sqlite: $sqlite, postgres: $postgres }
    };
}

/// Selects the columns of a record, in the order of [`super::rows`].
macro_rules! select_record {
    ($rest:expr) => {
        concat!("SELECT r.batch_id, r.prefix, r.data_key_id, r.header, r.state, r.slots FROM ", $rest)
    };
}

pub(crate) const DATA_KEYS: Sql = Sql::same(
    "SELECT data_key_id, kek_id, wrapped, kme FROM data_keys ORDER BY created_at_ms DESC, data_key_id LIMIT $1",
);
pub(crate) const DATA_KEY: Sql = Sql::same("SELECT kek_id, wrapped FROM data_keys WHERE data_key_id = $1");
pub(crate) const INSERT_DATA_KEY: Sql = Sql::same(
    "INSERT INTO data_keys (data_key_id, kek_id, wrapped, created_at_ms, kme) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (data_key_id) DO NOTHING",
);

pub(crate) const RECORD: Sql = sql!(
    select_record!("records r WHERE r.batch_id = $1"),
    select_record!("records r WHERE r.batch_id = $1 FOR UPDATE")
);
/// What new batches may meet: records of their batch IDs (`$1`) and of their prefixes (`$2`). Not locked: an
/// insert holds advisory locks on both, and changes neither.
pub(crate) const MET: Sql = sql!(
    select_record!(
        "records r WHERE r.batch_id IN (SELECT unhex(value) FROM json_each($1)) \
         OR r.prefix IN (SELECT value FROM json_each($2))"
    ),
    select_record!(
        "records r WHERE r.batch_id = ANY(ARRAY(SELECT decode(id, 'hex') FROM unnest(CAST($1 AS text[])) AS id)) \
         OR r.prefix = ANY(CAST($2 AS bigint[]))"
    )
);
/// Of the prefixes in `$1`.
pub(crate) const RECORDS: Sql = sql!(
    select_record!("json_each($1) p CROSS JOIN records r WHERE r.prefix = p.value"),
    select_record!("records r WHERE r.prefix = ANY(CAST($1 AS bigint[])) ORDER BY r.batch_id FOR UPDATE")
);
/// Ready records of a pair, earliest end first, without those that another daemon is taking. (`$4 + 0`: with a
/// bare parameter after LIMIT, SQLite prepares the statement again for each value.)
pub(crate) const READY: Sql = sql!(
    select_record!(
        "records r WHERE r.master_sae = $1 AND r.recipient = $2 AND r.ready_until_ms > $3 \
         ORDER BY r.ready_until_ms, r.batch_id LIMIT $4 + 0"
    ),
    select_record!(
        "records r WHERE r.master_sae = $1 AND r.recipient = $2 AND r.ready_until_ms > $3 \
         ORDER BY r.ready_until_ms, r.batch_id LIMIT $4 FOR UPDATE SKIP LOCKED"
    )
);
/// Records with keys to be erased by now.
pub(crate) const DUE: Sql = sql!(
    select_record!("records r WHERE r.erase_at_ms <= $1 ORDER BY r.erase_at_ms LIMIT $2 + 0"),
    select_record!(
        "records r WHERE r.erase_at_ms <= $1 ORDER BY r.erase_at_ms LIMIT $2 FOR UPDATE SKIP LOCKED"
    )
);
/// All columns that ever change.
pub(crate) const UPDATE_RECORD: Sql = Sql::same(
    "UPDATE records SET state = $2, slots = $3, recipient = $4, ready_keys = $5, ready_until_ms = $6, \
     erase_at_ms = $7, expires_at_ms = $8 WHERE batch_id = $1",
);
/// Most records of one [`update_records`].
pub(crate) const UPDATE_RECORDS_MAX: usize = 64;
const RECORD_COLUMNS: usize = 15;
/// For a record that is not what its row says: no lease and no sweep finds it until it expires.
pub(crate) const UNLIST_RECORD: Sql =
    Sql::same("UPDATE records SET ready_until_ms = NULL, erase_at_ms = NULL WHERE batch_id = $1");
pub(crate) const POSTPONE_RECORD: Sql = Sql::same("UPDATE records SET erase_at_ms = $2 WHERE batch_id = $1");
pub(crate) const COUNT_READY: Sql = Sql::same(
    "SELECT CAST(coalesce(sum(ready_keys), 0) AS BIGINT) FROM records \
     WHERE master_sae = $1 AND recipient = $2 AND ready_until_ms > $3",
);

/// Of the batch IDs in `$1`.
pub(crate) const TOMBSTONES: Sql = sql!(
    "SELECT batch_id, source_kme FROM tombstones WHERE batch_id IN (SELECT unhex(value) FROM json_each($1))",
    "SELECT batch_id, source_kme FROM tombstones WHERE batch_id = ANY(ARRAY(\
     SELECT decode(id, 'hex') FROM unnest(CAST($1 AS text[])) AS id))"
);
pub(crate) const INSERT_TOMBSTONE: Sql = Sql::same(
    "INSERT INTO tombstones (batch_id, source_kme, expires_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (batch_id, source_kme) DO NOTHING",
);

/// Records after `$1`.
pub(crate) const COUNT_BATCHES: Sql = Sql::same(
    "SELECT batch_id, source_kme, master_sae, key_count, key_bytes, state FROM records \
     WHERE batch_id > $1 ORDER BY batch_id LIMIT $2",
);
pub(crate) const COUNT_TOMBSTONES: Sql =
    Sql::same("SELECT source_kme, count(*) FROM tombstones GROUP BY source_kme");

pub(crate) const SWEEP_RECORDS: Sql = sql!(
    "DELETE FROM records WHERE batch_id IN \
     (SELECT batch_id FROM records WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2)",
    "DELETE FROM records WHERE batch_id = ANY(ARRAY(SELECT batch_id FROM records \
     WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
pub(crate) const SWEEP_TOMBSTONES: Sql = sql!(
    "DELETE FROM tombstones WHERE (batch_id, source_kme) IN \
     (SELECT batch_id, source_kme FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2)",
    "DELETE FROM tombstones WHERE ctid = ANY(ARRAY\
     (SELECT ctid FROM tombstones WHERE expires_at_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
);
/// `$1` is the data key that this process seals with; it stays. (With NOT EXISTS, Postgres may join all records.)
pub(crate) const SWEEP_DATA_KEYS: Sql = sql!(
    "DELETE FROM data_keys WHERE data_key_id IN \
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND (SELECT 1 FROM records r WHERE r.data_key_id = d.data_key_id LIMIT 1) IS NULL LIMIT $2) \
     RETURNING data_key_id",
    "DELETE FROM data_keys WHERE data_key_id = ANY(ARRAY\
     (SELECT d.data_key_id FROM data_keys d WHERE d.data_key_id <> $1 \
     AND (SELECT 1 FROM records r WHERE r.data_key_id = d.data_key_id LIMIT 1) IS NULL \
     LIMIT $2 FOR UPDATE OF d SKIP LOCKED)) \
     RETURNING data_key_id"
);

// Postgres only.

pub(crate) const SWEEP_MARKS: &str = "DELETE FROM commit_marks WHERE marked_at_ms <= $1";
/// In the order of the array. The schema is part of the lock, because two sites in schemas of one database have
/// the same batches.
pub(crate) const LOCK_BATCHES: &str = "SELECT pg_advisory_xact_lock(hashtext('dqkd batch ' || current_schema()), lock) \
     FROM unnest(CAST($1 AS int[])) AS lock";
/// By prefixes (`$1`) and by batch IDs in hexadecimal (`$2`).
pub(crate) const LOCK_RECORDS: &str = "SELECT batch_id FROM records WHERE batch_id = ANY(ARRAY(\
     SELECT batch_id FROM records WHERE prefix = ANY(CAST($1 AS bigint[])) \
     UNION ALL SELECT decode(id, 'hex') FROM unnest(CAST($2 AS text[])) AS id)) \
     ORDER BY batch_id FOR UPDATE";

/// The statement that adds `records` records. Its parameters are all columns of each.
pub(crate) fn insert_records(records: usize) -> String {
    let mut text = String::from(
        "INSERT INTO records (batch_id, prefix, source_kme, master_sae, recipient, key_count, key_bytes, \
         data_key_id, expires_at_ms, ready_keys, ready_until_ms, erase_at_ms, header, state, slots) VALUES ",
    );
    for parameter in 0..records * RECORD_COLUMNS {
        let before = match (parameter, parameter % RECORD_COLUMNS) {
            (0, _) => "(",
            (_, 0) => "), (",
            _ => ", ",
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{before}${}", parameter + 1);
    }
    text.push(')');
    text
}

/// The statement that changes the states and slots of `records` records. Its parameters are batch ID, state and
/// slots of each.
pub(crate) fn update_records(records: usize) -> String {
    let mut text = String::from("UPDATE records SET state = v.column2, slots = v.column3 FROM (VALUES ");
    for record in 0..records {
        let comma = if record == 0 { "" } else { ", " };
        let first = 3 * record + 1;
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}(${first}, ${}, ${})", first + 1, first + 2);
    }
    text.push_str(") AS v WHERE records.batch_id = v.column1");
    text
}

/// A list of batch IDs as one parameter, in hexadecimal.
pub(crate) fn ids<'a>(dialect: Dialect, ids: impl IntoIterator<Item = &'a BatchId>) -> String {
    numbers(dialect, ids.into_iter().map(|id| format!("\"{}\"", hex::encode(id.as_bytes()))))
}

/// A list as one parameter: a JSON array on SQLite, the text of an array on Postgres.
pub(crate) fn numbers<T: ToString>(dialect: Dialect, numbers: impl IntoIterator<Item = T>) -> String {
    let list = numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    match dialect {
        Dialect::Sqlite => format!("[{list}]"),
        Dialect::Postgres => format!("{{{list}}}"),
    }
}
