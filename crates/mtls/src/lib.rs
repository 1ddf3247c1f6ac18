//! Mutual TLS whose certificates name SAEs, KMEs, pool servers and operators.
//!
//! For the listeners and the clients of KMEs and of pool servers, and for programs that call them. Holds
//! certificates and reloads them ([`TlsStore`]), accepts connections ([`listener`]), makes calls
//! ([`HttpsClient`]), and reads who is at the other end ([`identity`]). It also owns which versions and key
//! exchanges are used: TLS 1.3 everywhere, 1.2 only where old encryptors call, the hybrid X25519MLKEM768
//! first.
//!
//! It does not route or authorise requests: it says who asks, and its callers decide what they may do.
//!
//! # Example
//!
//! A verified certificate names its holder by a SPIFFE URI:
//!
//! ```
//! use mtls::identity::{Identity, IdentityRules, SaeIdentitySource, identify};
//! use rcgen::{CertificateParams, KeyPair, SanType};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut params = CertificateParams::default();
//! params.subject_alt_names = vec![SanType::URI("spiffe://dqkd.example/sae/alice".try_into()?)];
//! let certificate = params.self_signed(&KeyPair::generate()?)?;
//!
//! let rules = IdentityRules {
//!     trust_domain: "dqkd.example".to_owned(),
//!     sae_sources: vec![SaeIdentitySource::Spiffe],
//! };
//! let Identity::Sae(alice) = identify(certificate.der(), &rules)? else { panic!("an SAE") };
//! assert_eq!(alice.id().as_str(), "alice");
//! # Ok(())
//! # }
//! ```

mod bundle;
mod chain;
mod client;
mod connector;
pub mod development;
mod dialer;
mod error;
mod files;
pub mod identity;
pub mod listener;
mod material;
mod revocation;
pub mod secret_file;
mod service;
mod signature_cache;
mod sparing;
mod store;
mod verifier;
mod versions;

pub use bundle::{Bundle, BundleError, open_bundle};
pub use client::{HttpVersion, HttpsClient, HttpsError};
pub use connector::HybridKeyExchange;
pub use dialer::{Dialer, Offer, OfferedTls};
pub use error::TlsError;
pub use files::{DaemonTls, TlsFiles};
pub use listener::{Cut, ListenerCounts, ListenerLimits, ListenerTls, Refusal};
pub use material::TlsParts;
pub use revocation::Revocations;
pub use service::{ConnectionService, ListenerService};
pub use sparing::SparingLog;
pub use store::TlsStore;
pub use verifier::ExpectedServer;
pub use versions::Versions;
