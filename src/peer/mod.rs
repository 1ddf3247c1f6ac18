//! The client side of the peer protocol: its messages and its calls.
//!
//! Owns the wire types of `/peer/v1/` and one [`PeerClient`] for each peer, with its deadlines and retries
//! and, for each of its addresses, a circuit breaker. Decides nothing about keys: [`crate::supply`] does.

mod breaker;
mod client;
mod digest;
mod error;
mod failover;
mod meter;
mod route;
pub mod wire;

#[cfg(test)]
mod tests;

pub use breaker::BreakerState;
pub use client::{NotPushed, PeerClient, PeerClientSettings, Pushed};
pub use digest::content_digest;
pub use error::{PeerError, QUOTA_FULL, SET_UNAVAILABLE};
pub use meter::{PeerMeter, PeerMeters};
