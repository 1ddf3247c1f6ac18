//! Schema versions: what they are, how an old one is brought up to date, that a newer one is refused.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::sql;

/// A schema version: its name and its statements, which never change once published.
struct Version {
    number: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! version {
    ($number:literal, $name:literal, $file:literal) => {
        Version {
            number: $number,
            name: $name,
            sqlite: include_str!(concat!("../../migrations/sqlite/", $file)),
            postgres: include_str!(concat!("../../migrations/postgres/", $file)),
        }
    };
}

/// Oldest first.
const VERSIONS: &[Version] =
    &[version!(1, "keys", "0001_keys.sql"), version!(2, "ready_blocks", "0002_ready_blocks.sql")];

/// Refuses a schema that this program does not know; brings an old one up to date when `migrate`.
pub(super) async fn prepare_schema(link: &mut Link, migrate: bool) -> Result<(), StoreError> {
    if link.dialect() == Dialect::Sqlite {
        return check_and_migrate(link, migrate).await;
    }
    // Another daemon may be at it, for as long as its statements take.
    sqlx::raw_sql(sql::BE_PATIENT).execute(&mut **link).await?;
    check_and_migrate(link, migrate).await?;
    sqlx::raw_sql(sql::BE_HASTY).execute(&mut **link).await?;
    Ok(())
}

async fn check_and_migrate(link: &mut Link, migrate: bool) -> Result<(), StoreError> {
    let newest = VERSIONS.last().map_or(0, |version| version.number);
    let has_table: i64 = sqlx::query_scalar(link.text(sql::HAS_MIGRATIONS)).fetch_one(&mut **link).await?;
    let version: i64 = if has_table == 0 {
        0
    } else {
        sqlx::query_scalar(link.text(sql::SCHEMA_VERSION)).fetch_one(&mut **link).await?
    };
    if version > newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, newer than {newest}, the newest that this program \
             knows: run the dqkd that made it, or a newer one"
        )));
    }
    if migrate {
        let migrator = migrator(link.dialect());
        return Ok(migrator.run_direct(None, &mut **link, false).await?);
    }
    if version < newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, this program needs {newest}: run `dqkd migrate`"
        )));
    }
    Ok(())
}

fn migrator(dialect: Dialect) -> Migrator {
    let migration = |version: &Version| {
        let sql = match dialect {
            Dialect::Sqlite => version.sqlite,
            Dialect::Postgres => version.postgres,
        };
        Migration::new(version.number, version.name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(VERSIONS.iter().map(migration).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn both_databases_have_every_listed_migration_and_no_other() {
        let listed: Vec<_> = VERSIONS.iter().map(|v| format!("{:04}_{}.sql", v.number, v.name)).collect();
        for database in ["sqlite", "postgres"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(database);
            let mut names: Vec<_> =
                dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names, listed, "{database}");
        }
    }
}
