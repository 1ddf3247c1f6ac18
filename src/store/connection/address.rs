//! The address of a store: from its URL to connections.

use super::dialect::{Dialect, Link};
use super::postgres::PostgresServers;
use super::sqlite::{self, SqliteFile};
use crate::store::error::StoreError;

/// Where the database is. May hold credentials, so it has no `Debug`.
pub(crate) enum Address {
    Sqlite(SqliteFile),
    Postgres(PostgresServers),
}

impl Address {
    /// Reads the URL of a store.
    ///
    /// # Errors
    /// [`StoreError::Settings`]; the text never repeats the URL, which may hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        // Calling it again does no harm.
        sqlx::any::install_default_drivers();
        if let Some(rest) = url.strip_prefix("sqlite:") {
            return SqliteFile::parse(rest).map(Self::Sqlite);
        }
        for scheme in ["postgres://", "postgresql://"] {
            if let Some(rest) = url.strip_prefix(scheme) {
                return PostgresServers::parse(rest).map(Self::Postgres);
            }
        }
        Err(StoreError::Settings("store.url must be sqlite://FILE or postgres://HOST/DATABASE".to_owned()))
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Checks that there is a database. With `create`, makes a missing SQLite file.
    pub(crate) fn find(&self, create: bool) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(file) => file.find(create),
            Self::Postgres(_) => Ok(()),
        }
    }

    /// A connection that may write.
    pub(crate) async fn connect(&self) -> Result<Link, StoreError> {
        let connection = match self {
            Self::Sqlite(file) => file.connect(sqlite::WRITE).await?,
            Self::Postgres(servers) => servers.connect().await?,
        };
        Ok(Link::new(connection, self.dialect()))
    }

    /// A connection for a copy. On SQLite it keeps every other process out.
    pub(crate) async fn connect_alone(&self) -> Result<Link, StoreError> {
        match self {
            Self::Sqlite(file) => Ok(Link::new(file.connect_alone().await?, Dialect::Sqlite)),
            Self::Postgres(_) => self.connect().await,
        }
    }

    /// A connection for single statements that only read.
    pub(crate) async fn connect_to_read(&self) -> Result<Link, StoreError> {
        match self {
            Self::Sqlite(file) => Ok(Link::new(file.connect(sqlite::READ).await?, Dialect::Sqlite)),
            Self::Postgres(_) => self.connect().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_urls_are_refused_without_repeating_them() {
        for (url, hint) in [
            ("mysql://u:hunter2@h/db", "sqlite://FILE"),
            ("sqlite::memory:", "restart"),
            ("sqlite://", "restart"),
            ("sqlite://a.db?mode=hunter2", "no options"),
            ("sqlite:///no/such/dir/a.db", "does not exist"),
            ("sqlite:///tmp", "is a directory"),
            ("postgres://u:hunter2@db.example/d", "sslmode=verify-full"),
            ("postgres://u:hunter2@db.example/d?sslmode=require", "sslmode=verify-full"),
            ("postgres://u:hunter2@127.0.0.1,db.example/d", "sslmode=verify-full"),
            ("postgres://u:hunter2@h/d?sslmode=disable&passwd=hunter2", "passwd"),
            ("postgres://u@h/d?sslmode=disable&password=hunter2", "password"),
            ("postgres://u:hunter2@127.0.0.1:hunter2/d", "store.url"),
            ("postgres://u:hunter2@127.0.0.1,/d", "a host"),
            ("postgres://u:hunter2@127.0.0.1#hunter2/d?sslmode=disable", "%23"),
            ("postgres://u:hunter2@127.0.0.1/d?sslmode=disable#hunter2", "%23"),
            ("postgres://u:hunter2@/d?host=/run/hunter2,/run/b", "several hosts"),
            ("postgres://u:hunter2@127.0.0.1/d?host=db.example", "two places"),
            ("postgres://u:hunter2@/d?host=127.0.0.1&host=db.example", "sslmode=verify-full"),
            ("postgres://u@[2001:db8::1]:5433/d", "sslmode=verify-full"),
        ] {
            let text = Address::parse(url).map(|_| ()).unwrap_err().to_string();
            assert!(text.contains(hint), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn urls_of_every_form_are_taken() {
        for url in [
            "postgres:///d?host=/run/postgresql",
            "postgresql://u:p@%2Frun%2Fpostgresql/d",
            "postgres://u@127.0.0.1:5433/d?options=-csearch_path%3Dsite_a",
            "postgres://u:p%40ss@[::1]:5433,localhost:5434/d",
            "postgres://u@h1:1,h2:2/d?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgres://u@h1/d?sslmode=disable",
        ] {
            assert!(matches!(Address::parse(url), Ok(Address::Postgres(_))), "{url}");
        }
    }
}
