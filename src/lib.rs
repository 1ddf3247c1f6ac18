//! `dqkd`: a multi-site Key Management Entity.
//!
//! Software key agreement over ordinary networks, delivered through ETSI GS QKD 014; not quantum key
//! distribution by physics. `ARCHITECTURE.md` shows the rooms of this house and which may import which.

pub mod delivery;
pub mod http;
pub mod identity;
pub mod kme;
pub mod store;
pub mod supply;
