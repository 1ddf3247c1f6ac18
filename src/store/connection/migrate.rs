//! Schema versions: brings an older schema up to date, refuses a newer one.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::dialect::{Link, Sql};
use crate::store::error::StoreError;

const HAS_MIGRATIONS: Sql = Sql {
    sqlite: "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
    postgres: "SELECT CASE WHEN to_regclass('_sqlx_migrations') IS NULL THEN 0 ELSE 1 END",
};
const SCHEMA_VERSION: Sql = Sql::same("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");

/// A schema version: its name and its statements, which never change once published.
struct Version {
    number: i64,
    name: &'static str,
    sql: Sql,
}

macro_rules! version {
    ($number:literal, $name:literal, $file:literal) => {
        Version {
            number: $number,
            name: $name,
            sql: Sql {
                sqlite: include_str!(concat!("../../../migrations/sqlite/", $file)),
                postgres: include_str!(concat!("../../../migrations/postgres/", $file)),
            },
        }
    };
}

/// Oldest first.
const VERSIONS: &[Version] = &[
    version!(1, "keys", "0001_keys.sql"),
    version!(2, "ready_blocks", "0002_ready_blocks.sql"),
    version!(3, "records", "0003_records.sql"),
];

/// Refuses a schema that this program does not know. With `migrate`, brings an older one up to date.
pub(crate) async fn prepare_schema(link: &mut Link, migrate: bool) -> Result<(), StoreError> {
    let newest = VERSIONS.last().map_or(0, |version| version.number);
    let has_table: i64 = sqlx::query_scalar(link.text(HAS_MIGRATIONS)).fetch_one(&mut **link).await?;
    let version: i64 = if has_table == 0 {
        0
    } else {
        sqlx::query_scalar(link.text(SCHEMA_VERSION)).fetch_one(&mut **link).await?
    };
    if version > newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, newer than {newest}, the newest that this program \
             knows: run the dqkd that made it, or a newer one"
        )));
    }
    if migrate {
        return Ok(migrator(link).run_direct(None, &mut **link, false).await?);
    }
    if version < newest {
        return Err(StoreError::Schema(format!(
            "the database has schema version {version}, this program needs {newest}: run `dqkd migrate`"
        )));
    }
    Ok(())
}

/// The schema of an older release, for tests.
#[cfg(test)]
pub(crate) async fn migrate_to(link: &mut Link, number: i64) -> Result<(), StoreError> {
    let all = migrator(link);
    let older = all.iter().filter(|migration| migration.version <= number).cloned().collect();
    Ok(Migrator::with_migrations(older).run_direct(None, &mut **link, false).await?)
}

fn migrator(link: &Link) -> Migrator {
    let migration = |version: &Version| {
        let sql = link.text(version.sql).into_sql_str();
        Migration::new(version.number, version.name.into(), MigrationType::Simple, sql, false)
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
