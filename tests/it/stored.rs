//! Reads a database file as an auditor would.

use std::path::Path;

/// Number of keys in a database file whose material is still there.
pub(crate) fn stored_keys(file: &Path) -> i64 {
    records(file).iter().map(|(count, slots)| full_slots(*count, slots)).sum()
}

/// Number of batches in a database file, also of those whose keys are gone.
pub(crate) fn stored_batches(file: &Path) -> usize {
    records(file).len()
}

/// Number of keys and slots of each.
fn records(file: &Path) -> Vec<(i64, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::query_as("SELECT key_count, slots FROM records").fetch_all(&mut connection).await.unwrap()
    })
}

/// How many of a record's `count` slots have something. No slots: nothing is left.
fn full_slots(count: i64, slots: &[u8]) -> i64 {
    let slot_bytes = (slots.len() / usize::try_from(count).unwrap()).max(1);
    let full = slots.chunks_exact(slot_bytes).filter(|slot| slot.iter().any(|byte| *byte != 0));
    i64::try_from(full.count()).unwrap()
}
