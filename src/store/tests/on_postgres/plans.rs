//! How Postgres finds the rows of the statements that every request runs: by an index, never by reading a table.
//!
//! `DQKD_PLAN_BATCHES=20000 cargo nextest run --no-capture every_statement_that` fills a larger table and shows the plans,
//! which `docs/data-model.md` quotes.

use std::fmt::Write as _;

use super::*;

/// Keys of each batch.
const KEYS: u32 = 50;

/// A thousand batches of keys, some retrieved, some ready, some past their time. IDs are the numbers themselves.
async fn fill(link: &mut Link, batches: u32) {
    let id = |of: &str| format!("decode(lpad(to_hex({of}), 32, '0'), 'hex')");
    let (batch, key) = (id("b"), id(&format!("b * {KEYS} + k")));
    for (name, index, text, types, values) in statements() {
        let plan = plan(&mut link, text, types, &values).await;
        println!("{name}\n{plan}");
        assert!(plan.contains(index), "{name}\n{plan}");
        // By the keys that are wanted, not by reading those of a whole batch beside them.
        let whole_batch = index == "keys_pkey" && plan.contains("keys_by_batch");
        assert!(!whole_batch, "{name}\n{plan}");
        for table in ["keys", "batches", "ready_blocks", "retrievals", "tombstones"] {
            assert!(!plan.contains(&format!("Seq Scan on {table}")), "{name}\n{plan}");
        }
    }
}
