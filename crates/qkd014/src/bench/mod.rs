//! Load on any two ETSI GS QKD 014 KMEs, and on the yardstick: a server that does nothing.
//!
//! Closed loop, or open loop at a given rate with times that start when a request was due. Every figure can be
//! taken beside one of the yardstick ([`hello`]) in the same minute, so that it is a ratio and not a property
//! of the machine. Keys that it receives are compared with their twins, wiped, and never part of a report.

mod answers;
mod calls;
pub mod hello;
mod http1;
mod link;
mod load;
mod pace;
mod processes;
mod report;
mod rounds;
mod setup;
mod stock;
mod tally;
mod twins;
mod windows;
mod worker;

pub use report::{Figures, Report, Round, Run};
pub use rounds::{News, run};
pub use setup::{Baseline, End, Http, Load, Operation, Setup};
pub use twins::Twins;
pub use windows::Window;

/// Why a measurement could not be made, in words for whoever asked for it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(String);
