//! A client, a tester and a load generator for any ETSI GS QKD 014 KME, of any vendor.
//!
//! [`client`] is the Rust client: status, fresh keys, keys by their IDs. [`conformance`] tests any two KMEs against
//! the standard. [`bench`] puts load on them. The program `qkd014` is all three at the command line ([`cli`]).

pub mod bench;
pub mod cli;
pub mod client;
pub mod conformance;
