//! A small certificate authority: a root, one issuing CA, certificates by role, `.p12` bundles, CRLs.
//!
//! For sites without a CA of their own, for the demo and for tests. Owns the shape of certificates: SPIFFE
//! URI, key usages, life. Private keys of the CAs lie in `authority/` and nowhere else.

mod authority;
mod bundle;
mod error;
mod files;
mod index;
mod profile;
mod show;

#[cfg(test)]
mod tests;

pub use authority::{Authority, Issued, NewAuthority, Order};
pub use error::PkiError;
pub use profile::Role;
pub use show::describe;
