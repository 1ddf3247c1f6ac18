//! What the four listeners answer: paths, JSON, status codes, and the guard around every request.
//!
//! A handler parses the request, calls one function of another room and encodes the result. It takes no
//! decisions about keys.

pub mod admin;
mod error;
mod extract;
mod guarded;
mod json;
pub mod limits;
mod meter;
pub mod middleware;
pub mod peer;
pub mod pool;
pub mod sae;

pub use self::guarded::{Guarded, GuardedConnection};
pub use self::meter::RequestMeters;
