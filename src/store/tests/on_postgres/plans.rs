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

/// A thousand records, some ready, some with keys to erase, some past their time. IDs are the numbers themselves.
async fn fill(link: &mut Link, batches: u32) {
    let id = |of: &str| format!("decode(lpad(to_hex({of}), 32, '0'), 'hex')");
    let batch = id("b");
    let zeros = |bytes: u32| format!("decode(repeat('00', {bytes}), 'hex')");
    let statements = [
        "SET statement_timeout = 0".to_owned(),
        format!("INSERT INTO data_keys VALUES ({}, 'kek', '\\x00', 0, 'site-a')", zeros(16)),
        format!(
            "INSERT INTO records SELECT {batch}, b, 'site-a', 'alice', \
             CASE WHEN b % 2 = 0 THEN 'sae-' || b % 20 END, {KEYS}, 32, {}, 1000 + b, b % 2 * {KEYS}, \
             CASE WHEN b % 2 = 0 THEN 500 + b END, CASE WHEN b % 10 = 0 THEN 2000 + b END, {}, {}, {} \
             FROM generate_series(1, {batches}) b",
            zeros(16),
            zeros(900),
            zeros(80),
            zeros(48 * KEYS)
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
type Statement = (&'static str, &'static str, String, String, String);

#[expect(clippy::too_many_lines, reason = "a list")]
fn statements() -> Vec<Statement> {
    let id = format!("'\\x{:032x}'", 77);
    let some = "'{1,7,77,500}'".to_owned();
    let row = format!("{id}, '\\x00', '\\x00'");
    let statement = |name, index, text: &str, types: &str, values: String| {
        (name, index, text.to_owned(), types.to_owned(), values)
    };
    vec![
        statement("RECORD", "records_pkey", sql::RECORD.postgres, "bytea", id.clone()),
        statement(
            "MET",
            "records_by_prefix",
            sql::MET.postgres,
            "text, text",
            format!("'{{{:032x}}}', {some}", 77),
        ),
        statement("RECORDS", "records_by_prefix", sql::RECORDS.postgres, "text", some.clone()),
        statement(
            "LOCK_RECORDS",
            "records_pkey",
            sql::LOCK_RECORDS,
            "text, text",
            format!("{some}, '{{{:032x}}}'", 77),
        ),
        statement(
            "READY",
            "records_ready",
            sql::READY.postgres,
            "text, text, bigint, bigint",
            "'alice', 'sae-7', 0, 2".to_owned(),
        ),
        statement(
            "COUNT_READY",
            "records_ready",
            sql::COUNT_READY.postgres,
            "text, text, bigint",
            "'alice', 'sae-7', 0".to_owned(),
        ),
        statement(
            "update_records",
            "records_pkey",
            &sql::update_records(64),
            &["bytea"; 192].join(", "),
            [row.as_str(); 64].join(", "),
        ),
        statement(
            "UPDATE_RECORD",
            "records_pkey",
            sql::UPDATE_RECORD.postgres,
            "bytea, bytea, bytea, text, bigint, bigint, bigint, bigint",
            format!("{row}, NULL, 0, NULL, NULL, 1000"),
        ),
        statement("UNLIST_RECORD", "records_pkey", sql::UNLIST_RECORD.postgres, "bytea", id.clone()),
        statement(
            "POSTPONE_RECORD",
            "records_pkey",
            sql::POSTPONE_RECORD.postgres,
            "bytea, bigint",
            format!("{id}, 1000"),
        ),
        statement(
            "TOMBSTONES",
            "tombstones_pkey",
            sql::TOMBSTONES.postgres,
            "text",
            format!("'{{{:032x}}}'", 77),
        ),
        statement(
            "SWEEP_DUE",
            "records_to_erase",
            sql::DUE.postgres,
            "bigint, bigint",
            "2100, 1000".to_owned(),
        ),
        statement(
            "SWEEP_RECORDS",
            "records_by_expiry",
            sql::SWEEP_RECORDS.postgres,
            "bigint, bigint",
            "1100, 1000".to_owned(),
        ),
        statement(
            "SWEEP_DATA_KEYS",
            "records_by_data_key",
            sql::SWEEP_DATA_KEYS.postgres,
            "bytea, bigint",
            format!("{id}, 1000"),
        ),
        statement(
            "COUNT_BATCHES",
            "records_pkey",
            sql::COUNT_BATCHES.postgres,
            "bytea, bigint",
            format!("{id}, 256"),
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
        let plan = plan(&mut link, &text, &types, &values).await;
        println!("{name}\n{plan}");
        assert!(plan.contains(index), "{name}\n{plan}");
        // The first to expire come first in the index.
        assert!(!(name.starts_with("SWEEP") && plan.contains("Sort")), "{name}\n{plan}");
        assert!(!plan.contains("Join Filter"), "{name}\n{plan}");
        for table in ["records", "tombstones"] {
            assert!(!plan.contains(&format!("Seq Scan on {table}")), "{name}\n{plan}");
        }
    }
}
