//! Integration tests: real processes, real TLS, real SQLite files, the real curl.
//!
//! One program, so that everything is linked once. `support` starts networks of daemons; every other module is
//! a group of rules.

mod commands;
mod demo;
mod network;
mod samples;
mod support;
mod tidy;
mod trouble;
mod uninvited;
