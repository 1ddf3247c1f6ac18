//! Hostile insiders: attacks by holders of valid certificates on a real network, two sites and some pool
//! servers as processes, while honest applications go on asking.
//!
//! Each attack is a function that measures; the test beside it holds what must be true. `bash tests/insiders.sh`
//! runs longer versions of all attacks and prints their figures as a table. `DQKD_BIN=FILE` attacks another
//! program than the one built with the tests.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and measures by the real clock"
)]

mod field;
mod finding;
mod honest;
mod liar;
mod log_lines;
mod places;
mod pool_server;
mod revocation;
mod roles;
mod speakers;
mod storage;
mod strangers;
mod table;
mod trust;
mod unread;
mod work;
