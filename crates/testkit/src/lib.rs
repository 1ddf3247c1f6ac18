//! What the tests of this workspace share: a certificate authority, private Postgres servers, networks of
//! real daemons as processes, the real curl.
//!
//! Failures panic: a test that cannot start its daemons has failed.

#![expect(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits for processes by the real clock"
)]

mod authority;
mod corporate_ca;
mod curl;
mod link;
mod manifest;
mod needs;
mod network;
pub mod postgres;
mod process;
pub mod raw_h2;
mod small_kme;

pub use authority::{
    TRUST_DOMAIN, TestAuthority, authenticated_kme, authenticated_sae, shared, spiffe_rules,
};
pub use corporate_ca::CorporateCa;
pub use curl::{Curl, CurlAnswer};
pub use link::TcpLink;
pub use manifest::Sae;
pub use needs::Need;
pub use network::{Network, Ports};
pub use process::{
    Daemon, Killed, PATIENCE, Starting, dqkd, eventually, lines_of, output_of, program, qkd014, run_to_end,
};
pub use raw_h2::{RawAnswer, RawClient, RawH2};
pub use small_kme::SmallKme;
