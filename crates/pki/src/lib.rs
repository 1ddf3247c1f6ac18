//! A small certificate authority: a root, one issuing CA, certificates by role, `.p12` bundles, revocation lists.
//!
//! For sites without a certificate authority of their own, for the demo and for tests. It owns what certificates look
//! like: SPIFFE URI, key usages, life. `docs/deployment.md` says how operators use it.
//!
//! It must not talk to the network or read the configuration of a daemon. The private keys of its CAs are written to
//! the folder `authority/` and nowhere else.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//!
//! use kme::{OsRandom, SystemClock};
//! use pki::{Authority, NewAuthority, Order, Role};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let new = NewAuthority { crl_days: 30, ..NewAuthority::new("dqkd.example") };
//! let authority = Authority::init(folder.path(), &new, Arc::new(SystemClock), Arc::new(OsRandom))?;
//!
//! let order = Order {
//!     role: Role::Sae,
//!     id: "alice".to_owned(),
//!     cn_only: false,
//!     dns: Vec::new(),
//!     ip: Vec::new(),
//!     days: 365,
//!     p12_password: None,
//!     file_name: None,
//!     replace: false,
//! };
//! let issued = authority.issue(&order, folder.path())?;
//! assert_eq!(issued.cert, folder.path().join("alice.pem"));
//! assert!(pki::describe(&std::fs::read(&issued.cert)?).is_some_and(|text| text.contains("sae/alice")));
//! # Ok(())
//! # }
//! ```

mod authority;
mod bundle;
mod error;
mod files;
mod index;
mod listed;
mod lists;
mod permits;
mod profile;
mod sealed_key;
mod show;

#[cfg(test)]
mod tests;

pub use authority::{Authority, Issued, NewAuthority, Order, Renewal};
pub use error::PkiError;
pub use listed::{Listed, State};
pub use permits::Permits;
pub use profile::Role;
pub use show::describe;
