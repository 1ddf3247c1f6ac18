//! Puts the rooms together: a running KME, a running pool server, from their settings.
//!
//! The only room that knows all others. Owns start order, background tasks, readiness, reload and the
//! graceful stop; decides nothing about keys.

mod health;
mod kme;
mod map;
mod numbers;
mod pool_server;
mod reload;
mod supervise;

pub use kme::start_kme;
pub use map::{key_encryption_keys, store_url};
pub use pool_server::start_pool_server;
pub use reload::Origin;
pub use supervise::{Daemon, Stopped};
