//! Everything axum: routers, extractors, status codes. Nothing below this room imports it.
//!
//! Handlers parse the request, call one function of the room behind them and encode its answer. They
//! decide nothing about keys.

pub mod error;
pub mod json;
pub mod pool;
