//! `dqkd`: a multi-site Key Management Entity.
//!
//! Software key agreement over ordinary networks, delivered through ETSI GS QKD 014; not quantum key
//! distribution by physics. `ARCHITECTURE.md` shows the rooms of this house and which may import which.

pub mod app;
pub mod bench;
pub mod blast;
pub mod cli;
pub mod client;
pub mod config;
pub mod conformance;
pub mod delivery;
pub mod http;
pub mod identity;
pub mod kme;
pub mod metrics;
pub mod peer;
pub mod pki;
pub mod pool;
pub mod self_test;
pub mod store;
pub mod supply;
pub mod telemetry;
pub mod tls;

#[cfg(test)]
mod testing;
