//! A schema of its own in a Postgres database, for each site of a demo.

use sqlx::{AssertSqlSafe, Connection};

use super::connect::Address;
use super::dialect::Dialect;
use super::error::StoreError;

/// Makes an empty schema for `site` in the database at `url`, and whatever a schema of that name held is gone: its
/// name begins with `dqkd_demo_`. Returns the URL of a store in it.
pub(super) async fn of_a_demo(url: &str, site: &str) -> Result<String, StoreError> {
    let address = Address::parse(url)?;
    if address.dialect() != Dialect::Postgres {
        return Err(StoreError::Settings("a demo's store must be postgres://HOST/DATABASE".to_owned()));
    }
    let letters = site.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    let name = format!("dqkd_demo_{}", letters.collect::<String>());
    let mut link = address.connect().await?;
    let text = format!("DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}");
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *link).await?;
    link.into_inner().close().await?;
    let sign = if url.contains('?') { '&' } else { '?' };
    Ok(format!("{url}{sign}options=-csearch_path%3D{name}"))
}
