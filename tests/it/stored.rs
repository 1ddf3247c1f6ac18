//! Reads a database file as an auditor would.

use std::path::Path;

/// Number of keys in a database file whose material is still there.
pub(crate) fn stored_keys(file: &Path) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
        let mut connection = options.connect().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM keys WHERE sealed IS NOT NULL")
            .fetch_one(&mut connection)
            .await
            .unwrap()
    })
}
