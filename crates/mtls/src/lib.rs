//! Mutual TLS: certificates and their reload, the accept loop of every listener, the client of every call.
//!
//! Owns the cipher and version policy: TLS 1.3 everywhere, 1.2 only where old encryptors call, the hybrid
//! X25519MLKEM768 first. Knows HTTP only as far as a connection needs; routes nothing.

mod body;
mod bundle;
mod client;
mod connector;
mod dialer;
mod error;
mod front;
pub mod identity;
pub mod listener;
mod material;
mod remember;
mod store;
mod timer;
mod verifier;

pub use bundle::{Bundle, BundleError, open_bundle};
pub use client::{HttpVersion, HttpsClient, HttpsError};
pub use connector::HybridKeyExchange;
pub use dialer::{Dialer, Offer, OfferedTls};
pub use error::TlsError;
pub use front::{Desk, Front, PeerAddress};
pub use listener::{ListenerLimits, ListenerTls};
pub use material::{TlsFiles, TlsParts};
pub use store::{TlsStore, Versions};
pub use verifier::ExpectedServer;
