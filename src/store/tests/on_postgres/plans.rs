//! How Postgres finds the rows of the statements that every request runs: by an index, never by reading a
//! table.
//!
//! `DQKD_PLAN_BATCHES=20000 cargo test --lib every_statement_that -- --nocapture` fills a larger table and
//! shows the plans, which `docs/lab/query-plans.md` quotes.

use std::fmt::Write as _;

use super::*;
use crate::store::verbs::sql;

/// Keys of each batch.
const KEYS: u32 = 50;

/// A thousand batches of keys, some retrieved, some ready, some past their time. IDs are the numbers
/// themselves.
async fn fill(link: &mut Link, batches: u32) {
    let id = |of: &str| format!("decode(lpad(to_hex({of}), 32, '0'), 'hex')");
    let (batch, key) = (id("b"), id(&format!("b * {KEYS} + k")));
    let statements = [
        "SET statement_timeout = 0".to_owned(),
        "INSERT INTO data_keys VALUES (decode(repeat('00', 16), 'hex'), 'kek', '\\x00', 0)".to_owned(),
        format!(
            "INSERT INTO batches SELECT {batch}, 'site-a', 'alice', '[]', '[]', 32, \
             (SELECT string_agg({key}, '' ORDER BY k) FROM generate_series(0, {KEYS} - 1) k), \
             decode(repeat('00', 16), 'hex'), decode(repeat('00', 32), 'hex'), 'stored', 0, 1000 + b \
             FROM generate_series(1, {batches}) b"
        ),
        format!(
            "INSERT INTO keys SELECT {key}, {batch}, decode(repeat('00', 60), 'hex'), \
             CASE WHEN k % 10 = 0 THEN 2000 END \
             FROM generate_series(1, {batches}) b, generate_series(0, {KEYS} - 1) k"
        ),
        format!(
            "INSERT INTO retrievals SELECT {key}, 'sae:bob', 'bob', 0 \
             FROM generate_series(1, {batches}) b, generate_series(0, {KEYS} - 1, 10) k"
        ),
        format!(
            "INSERT INTO ready_blocks SELECT {batch}, 'alice', 'sae-' || b % 20, {batch}, '{{}}', 500 + b \
             FROM generate_series(1, {batches}) b WHERE b % 2 = 0"
        ),
        format!(
            "INSERT INTO tombstones SELECT {batch}, 'site-a', 1000 + b FROM generate_series(1, {batches}) b"
        ),
        "ANALYZE".to_owned(),
    ];
    for statement in statements {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut **link).await.unwrap();
    }
}

/// The plan of a statement for unknown parameters, as for the driver's prepared statements.
async fn plan(link: &mut Link, sql: &str, types: &str, values: &str) -> String {
    let text = format!(
        "SET plan_cache_mode = force_generic_plan; DEALLOCATE ALL; PREPARE p({types}) AS {sql}; \
         EXPLAIN (COSTS OFF) EXECUTE p({values})"
    );
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(&mut **link).await.unwrap();
    let mut plan = String::new();
    for row in rows {
        writeln!(plan, "{}", sqlx::Row::get::<String, _>(&row, 0)).unwrap();
    }
    plan
}

/// A statement's name, the index that it has to find its rows by, its text, and types and values of its
/// parameters.
type Statement = (&'static str, &'static str, &'static str, &'static str, String);

fn statements() -> Vec<Statement> {
    let ids = format!("decode(repeat('{:032x}', 64), 'hex')", 77 * KEYS);
    let id = format!("'\\x{:032x}'", 77);
    let batches = format!("decode(repeat('{:032x}', 64), 'hex')", 77);
    vec![
        ("LOCK_KEYS", "keys_pkey", sql::LOCK_KEYS, "bytea", ids.clone()),
        ("KEYS", "keys_pkey", sql::KEYS.postgres, "bytea", ids.clone()),
        ("BATCHES", "batches_pkey", sql::BATCHES.postgres, "bytea", batches),
        ("TAKE_FRESH", "keys_pkey", sql::TAKE_FRESH.postgres, "bytea", ids.clone()),
        (
            "INSERT_RETRIEVALS",
            "retrievals_pkey",
            sql::INSERT_RETRIEVALS.postgres,
            "bytea, text, text, bigint",
            format!("{ids}, 'a', 'b', 0"),
        ),
        ("ERASE_KEYS", "keys_pkey", sql::ERASE_KEYS.postgres, "bytea", ids.clone()),
        ("ERASE_LATER", "keys_pkey", sql::ERASE_LATER.postgres, "bytea, bigint", format!("{ids}, 0")),
        ("VOIDABLE", "keys_pkey", sql::VOIDABLE.postgres, "bytea, bytea", format!("{ids}, {id}")),
        ("VOID_KEYS", "keys_pkey", sql::VOID_KEYS.postgres, "bytea", ids.clone()),
        ("KEYS_IN_USE", "keys_pkey", sql::KEYS_IN_USE.postgres, "bytea", ids.clone()),
        ("BATCH", "batches_pkey", sql::BATCH.postgres, "bytea", id.clone()),
        ("TOMBSTONE", "tombstones_pkey", sql::TOMBSTONE.postgres, "bytea, text", format!("{id}, 'site-a'")),
        (
            "READY",
            "ready_blocks_by_pair",
            sql::READY.postgres,
            "text, text, bigint, bigint",
            "'alice', 'sae-7', 0, 2".to_owned(),
        ),
        ("DELETE_READY", "ready_blocks_pkey", sql::DELETE_READY.postgres, "bytea", ids.clone()),
        ("DISTRUST_READY", "ready_blocks_pkey", sql::DISTRUST_READY.postgres, "bytea", ids.clone()),
        ("READY_KEYS", "keys_pkey", sql::READY_KEYS.postgres, "bytea, bytea", format!("{ids}, {id}")),
        (
            "COUNT_READY",
            "ready_blocks_by_pair",
            sql::COUNT_READY.postgres,
            "text, text, bigint",
            "'alice', 'sae-7', 0".to_owned(),
        ),
        ("READINESS", "batches_pkey", sql::READINESS.postgres, "bytea", id.clone()),
        (
            "SWEEP_READY",
            "ready_blocks_by_end",
            sql::SWEEP_READY.postgres,
            "bigint, bigint",
            "600, 1000".to_owned(),
        ),
        (
            "SWEEP_RETRIEVED",
            "keys_to_erase",
            sql::SWEEP_RETRIEVED.postgres,
            "bigint, bigint",
            "2000, 1000".to_owned(),
        ),
        (
            "SWEEP_EXPIRED_KEYS",
            "batches_by_expiry",
            sql::SWEEP_EXPIRED_KEYS.postgres,
            "bigint, bigint",
            "1100, 1000".to_owned(),
        ),
        ("COUNT_BATCHES", "batches_pkey", sql::COUNT_BATCHES.postgres, "bytea, bigint", format!("{id}, 256")),
        (
            "SWEEP_BATCHES",
            "batches_by_expiry",
            sql::SWEEP_BATCHES.postgres,
            "bigint, bigint",
            "1100, 1000".to_owned(),
        ),
    ]
}

#[tokio::test]
async fn every_statement_that_a_request_runs_finds_its_rows_by_an_index() {
    let site = site!();
    site.open().await.close().await;
    let mut link = site.sql().await;
    let batches = std::env::var("DQKD_PLAN_BATCHES").map_or(1_000, |text| text.parse().unwrap());
    fill(&mut link, batches).await;
    for (name, index, text, types, values) in statements() {
        let plan = plan(&mut link, text, types, &values).await;
        println!("{name}\n{plan}");
        assert!(plan.contains(index), "{name}\n{plan}");
        // The first to expire come first in the index.
        assert!(!(name.starts_with("SWEEP") && plan.contains("Sort")), "{name}\n{plan}");
        // Finds the wanted keys themselves, instead of reading whole batches.
        let whole_batch = index == "keys_pkey" && plan.contains("keys_by_batch");
        assert!(!whole_batch, "{name}\n{plan}");
        for table in ["keys", "batches", "ready_blocks", "retrievals", "tombstones"] {
            assert!(!plan.contains(&format!("Seq Scan on {table}")), "{name}\n{plan}");
        }
    }
}
