//! The way to the database: addresses, connections, what differs between SQLite and Postgres, schema
//! versions.
//!
//! Knows nothing of keys.

mod address;
mod dialect;
mod migrate;
mod postgres;
mod reader;
mod sqlite;

pub(crate) use self::address::Address;
pub(crate) use self::dialect::{BE_HASTY, BE_PATIENT, Dialect, Link, Sql};
#[cfg(test)]
pub(crate) use self::migrate::migrate_to;
pub(crate) use self::migrate::prepare_schema;
pub(crate) use self::reader::Reader;
