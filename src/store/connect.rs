//! From a store URL to connections.

use super::dialect::{Dialect, Link};
use super::error::StoreError;
use super::postgres::Servers;
use super::sqlite::{self, SqliteFile};

/// Where the database is. May hold credentials, so it has no `Debug`.
pub(super) enum Address {
    Sqlite(SqliteFile),
    Postgres(Servers),
}

impl Address {
    /// # Errors
    /// [`StoreError::Settings`]; the text never repeats the URL, which may hold credentials.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        // The second call finds them installed.
        sqlx::any::install_default_drivers();
        if let Some(rest) = url.strip_prefix("sqlite:") {
            return SqliteFile::parse(rest).map(Self::Sqlite);
        }
        for scheme in ["postgres://", "postgresql://"] {
            if let Some(rest) = url.strip_prefix(scheme) {
                return Servers::parse(rest).map(Self::Postgres);
            }
        }
        Err(StoreError::Settings("store.url must be sqlite://FILE or postgres://HOST/DATABASE".to_owned()))
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Whether there is a database; makes the file of one when `create`.
    pub(super) fn find(&self, create: bool) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(file) => file.find(create),
            Self::Postgres(_) => Ok(()),
        }
    }

    pub(super) async fn connect(&self) -> Result<Link, StoreError> {
        let connection = match self {
            Self::Sqlite(file) => file.connect(sqlite::WRITE).await?,
            Self::Postgres(servers) => servers.connect().await?,
        };
        Ok(Link::new(connection, self.dialect()))
    }

    /// A connection to a database that nobody else uses, as far as the database can tell: SQLite makes sure of it.
    pub(super) async fn connect_alone(&self) -> Result<Link, StoreError> {
        match self {
            Self::Sqlite(file) => Ok(Link::new(file.connect_alone().await?, Dialect::Sqlite)),
            Self::Postgres(_) => self.connect().await,
        }
    }

    /// A connection for single statements that change nothing.
    pub(super) async fn connect_to_read(&self) -> Result<Link, StoreError> {
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
