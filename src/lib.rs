//! `dqkd`: a multi-site Key Management Entity.
//!
//! Software key agreement over ordinary networks, delivered through ETSI GS QKD 014; not quantum key
//! distribution by physics. `ARCHITECTURE.md` shows the rooms of this house and which may import which.

pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod http;
pub mod metrics;
pub mod peer;
pub mod pool;
pub mod self_test;
pub mod store;
pub mod supply;
pub mod telemetry;
