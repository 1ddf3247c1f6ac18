//! The two databases, and a connection to one of them.
//!
//! Everything that differs between them stands here, in [`super::sql`] (statements), [`super::sqlite`] and
//! [`super::postgres`] (addresses and how a connection is made) and [`super::commit`] (how a transaction begins
//! and ends). The verbs know only a [`Link`].

use std::ops::{Deref, DerefMut};

use sqlx::AnyConnection;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// A statement in both dialects.
#[derive(Clone, Copy)]
pub(super) struct Sql {
    pub(super) sqlite: &'static str,
    pub(super) postgres: &'static str,
}

impl Sql {
    /// A statement that means the same in both.
    pub(super) const fn same(text: &'static str) -> Self {
        Self { sqlite: text, postgres: text }
    }

    pub(super) fn on(self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Sqlite => self.sqlite,
            Dialect::Postgres => self.postgres,
        }
    }
}

/// A connection that knows its dialect.
pub(super) struct Link {
    connection: AnyConnection,
    dialect: Dialect,
}

impl Link {
    pub(super) fn new(connection: AnyConnection, dialect: Dialect) -> Self {
        Self { connection, dialect }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The text of `statement` for this connection.
    pub(super) fn text(&self, statement: Sql) -> &'static str {
        statement.on(self.dialect)
    }

    pub(super) fn into_inner(self) -> AnyConnection {
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
