//! How a transaction begins and ends, and what became of one whose end nobody saw.
//!
//! A COMMIT whose answer is lost may have taken place. On Postgres every transaction therefore leaves a mark: a
//! fresh random token in the row of its writer, written together with BEGIN, so it costs no round trip. After a
//! broken COMMIT the writer takes that row on a new connection, which waits for the old transaction if it is
//! still at work: the token is there, or the transaction never will be.

use kme::{Random, RandomError, Timestamp};
use sqlx::AssertSqlSafe;

use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::sql;

/// Names one writer and the transaction that it is in. Holds nothing secret.
pub(super) struct Mark {
    writer: [u8; 16],
    token: [u8; 16],
}

impl Mark {
    /// Of a writer that nobody has named before.
    pub(super) fn draw(random: &dyn Random) -> Result<Self, RandomError> {
        let mut writer = [0; 16];
        random.fill(&mut writer)?;
        Ok(Self { writer, token: [0; 16] })
    }

    fn renew(&mut self, random: &dyn Random) -> Result<(), RandomError> {
        random.fill(&mut self.token)
    }
}

/// Begins a transaction that may change anything.
pub(super) async fn begin(
    link: &mut Link,
    mark: &mut Mark,
    random: &dyn Random,
    now: Timestamp,
) -> Result<(), StoreError> {
    match link.dialect() {
        Dialect::Sqlite => sqlx::raw_sql(sql::BEGIN_SQLITE).execute(&mut **link).await?,
        Dialect::Postgres => {
            mark.renew(random).map_err(super::seal::SealError::from)?;
            // Hexadecimal digits and a number, all of our own making; with parameters it were two statements.
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

pub(super) async fn commit(link: &mut Link) -> Result<(), StoreError> {
    sqlx::raw_sql(sql::COMMIT).execute(&mut **link).await?;
    Ok(())
}

/// Whether the transaction that `mark` was last begun with is committed. Waits while it is neither committed nor
/// gone. To be asked on a connection made after the one that broke.
pub(super) async fn is_committed(link: &mut Link, mark: &Mark, now: Timestamp) -> Result<bool, StoreError> {
    let found: Vec<u8> = sqlx::query_scalar(sql::TAKE_MARK)
        .bind(hex::encode(mark.writer))
        .bind([0; 16].as_slice())
        .bind(now.as_ms())
        .fetch_one(&mut **link)
        .await?;
    Ok(found == mark.token)
}
