//! Integration tests: real processes, real TLS, real databases, the real curl.
//!
//! One program, so that everything is linked once. `support` starts networks of daemons; every other module is
//! a group of rules.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits for processes by the real clock"
)]

mod bench;
mod commands;
mod conformance;
mod defects;
mod demo;
mod deploy;
mod metrics;
mod moving;
#[path = "../../src/testing/needs.rs"]
mod needs;
mod network;
mod openapi;
#[path = "../../src/testing/postgres.rs"]
#[expect(dead_code, reason = "the unit tests and the fault runs use the rest of it")]
mod postgres;
mod replicas;
mod reserve;
mod samples;
mod support;
/// Where the unit tests have the same.
mod testing {
    pub(crate) use crate::needs;
}
mod tidy;
mod trouble;
mod uninvited;
mod wrong_kme;
