//! Keys ahead of demand: batches made with peers, leases, refill.
//!
//! Owns when keys are made and which may be handed out. Knows nothing of HTTP or of what SAEs are allowed.

mod error;

pub use error::SupplyError;
