//! The two databases, a statement for both, and a connection to either.

use std::ops::{Deref, DerefMut};

use sqlx::AnyConnection;

/// For a session that may wait long, also for a migration by another daemon.
pub(crate) const BE_PATIENT: &str = "SET statement_timeout = '10min'; SET lock_timeout = '10min'";
/// Back to the limits of the connection.
pub(crate) const BE_HASTY: &str = "RESET statement_timeout; RESET lock_timeout";

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// A statement in both dialects.
#[derive(Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl Sql {
    /// A statement with one text for both.
    pub(crate) const fn same(text: &'static str) -> Self {
        Self { sqlite: text, postgres: text }
    }
}

/// A connection that knows its dialect.
pub(crate) struct Link {
    connection: AnyConnection,
    dialect: Dialect,
}

impl Link {
    pub(crate) fn new(connection: AnyConnection, dialect: Dialect) -> Self {
        Self { connection, dialect }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The text of `statement` for this connection.
    pub(crate) fn text(&self, statement: Sql) -> &'static str {
        match self.dialect {
            Dialect::Sqlite => statement.sqlite,
            Dialect::Postgres => statement.postgres,
        }
    }

    /// Sets how long statements of this session may take: [`BE_PATIENT`] or [`BE_HASTY`]. SQLite has no such limit.
    pub(crate) async fn set_limits(&mut self, limits: &'static str) -> Result<(), sqlx::Error> {
        if self.dialect == Dialect::Postgres {
            sqlx::raw_sql(limits).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    pub(crate) fn into_inner(self) -> AnyConnection {
        self.connection
    }
}

impl Deref for Link {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for Link {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}
