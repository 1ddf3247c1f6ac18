//! The two databases, a statement for both, and a connection to either.

use std::ops::{Deref, DerefMut};

use sqlx::AnyConnection;

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

    fn on(self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Sqlite => self.sqlite,
            Dialect::Postgres => self.postgres,
        }
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
        statement.on(self.dialect)
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
