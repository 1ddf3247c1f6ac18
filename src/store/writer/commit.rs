//! How a transaction begins and ends, and how to find out whether a COMMIT took place.
//!
//! A COMMIT whose answer is lost may have taken place. So every transaction on Postgres leaves a mark: a
//! fresh random token in its writer's row of `commit_marks`, written with BEGIN in one round trip. After a
//! broken COMMIT the writer reads its row on a new connection, which waits for the old transaction if that is
//! still at work. If the token is not there then, it never will be.

use kme::{Random, RandomError, Timestamp};
use sqlx::AssertSqlSafe;

use crate::store::connection::{Dialect, Link};
use crate::store::error::StoreError;
use crate::store::sealing::SealError;

/// Reads the token in a writer's mark, or `$2` if there is none. Waits for a transaction that is changing it.
const TAKE_MARK: &str = "INSERT INTO commit_marks (writer, token, marked_at_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (writer) DO UPDATE SET token = commit_marks.token RETURNING token";

/// Names a writer and its present transaction. Not secret.
pub(crate) struct Mark {
    writer: [u8; 16],
    token: [u8; 16],
}

impl Mark {
    /// The mark of a new writer.
    pub(crate) fn draw(random: &dyn Random) -> Result<Self, RandomError> {
        let mut writer = [0; 16];
        random.fill(&mut writer)?;
        Ok(Self { writer, token: [0; 16] })
    }
}

/// Begins a transaction that may write.
pub(super) async fn begin(
    link: &mut Link,
    mark: &mut Mark,
    random: &dyn Random,
    now: Timestamp,
) -> Result<(), StoreError> {
    match link.dialect() {
        Dialect::Sqlite => sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut **link).await?,
        Dialect::Postgres => {
            random.fill(&mut mark.token).map_err(SealError::from)?;
            // Text, because a statement with parameters could not travel with BEGIN. All parts are made here.
            let text = format!(
                "BEGIN; INSERT INTO commit_marks (writer, token, marked_at_ms) VALUES ('{}', '\\x{}', {}) \
                 ON CONFLICT (writer) DO UPDATE SET token = excluded.token, marked_at_ms = excluded.marked_at_ms",
                hex::encode(mark.writer),
                hex::encode(mark.token),
                now.as_ms()
            );
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut **link).await?
        }
    };
    Ok(())
}

/// Commits.
pub(super) async fn commit(link: &mut Link) -> Result<(), StoreError> {
    sqlx::raw_sql("COMMIT").execute(&mut **link).await?;
    Ok(())
}

/// Commits where no mark shows what became of it. [`StoreError::Uncertain`] unless the error proves that nothing
/// was committed.
pub(crate) async fn commit_or_uncertain(link: &mut Link) -> Result<(), StoreError> {
    let committed = commit(link).await;
    committed.map_err(|error| if error.proves_no_commit() { error } else { error.into_uncertain() })
}

/// Whether the last transaction of `mark` is committed. Waits while it is still at work. Needs a connection
/// that was made after the one that broke.
pub(super) async fn is_committed(link: &mut Link, mark: &Mark, now: Timestamp) -> Result<bool, StoreError> {
    let found: Vec<u8> = sqlx::query_scalar(TAKE_MARK)
        .bind(hex::encode(mark.writer))
        .bind([0; 16].as_slice())
        .bind(now.as_ms())
        .fetch_one(&mut **link)
        .await?;
    Ok(found == mark.token)
}
