//! Integration tests: real processes, real TLS, real databases, the real curl.
//!
//! One program, so that everything is linked once. Every module is a group of rules; `testkit` starts the
//! networks of daemons.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits for processes by the real clock"
)]

mod carry_over;
mod commands;
mod conformance;
mod copies;
mod defects;
mod deliveries;
mod demo;
mod deploy;
mod identity;
mod insiders_limits;
mod metrics;
mod moving;
mod network;
mod openapi;
mod pools;
mod replicas;
mod reserve;
mod samples;
mod stored;
mod tidy;
mod trouble;
mod uninvited;
