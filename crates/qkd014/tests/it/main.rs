//! The program `qkd014` against real KMEs: networks of `dqkd`, and KMEs with one fault each.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod bench;
mod commands;
mod library;
mod snapshots;
mod wrong_kme;
