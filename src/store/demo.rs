//! A schema in a Postgres database for each site of a demo.

use sqlx::{AssertSqlSafe, Connection};

use super::connection::{Address, Dialect};
use super::error::StoreError;

/// Makes an empty schema for `site` of a demo in the Postgres database at `url`. **Drops** the schema of that
/// name, which begins with `dqkd_demo_`. Returns the URL of the site's store.
///
/// # Errors
/// [`StoreError::Settings`] for any other URL, or a failure of the database.
pub async fn replace_demo_schema(url: &str, site: &str) -> Result<String, StoreError> {
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
