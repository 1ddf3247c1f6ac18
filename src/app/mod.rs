//! Makes a running KME or pool server from its settings.
//!
//! Owns the order of the start, background tasks, readiness, reload and the graceful stop. Takes no decisions
//! about keys.

mod gauges;
mod health;
mod identity;
mod kme;
mod pool_server;
mod reload;
mod supervise;
mod wiring;

pub use identity::check_identity;
pub use kme::start_kme;
pub use pool_server::start_pool_server;
pub use reload::Origin;
pub use supervise::Daemon;
pub use wiring::{key_encryption_keys, store_url};
