//! Everything axum: routers, extractors, status codes. Nothing below this room imports it.
//!
//! Handlers parse the request, call one function of the room behind them and encode its answer. They
//! decide nothing about keys.

pub mod admin;
pub mod error;
pub mod extract;
pub mod json;
mod meter;
pub mod middleware;
pub mod peer;
pub mod pool;
pub mod sae;

pub use self::meter::RequestMeters;
