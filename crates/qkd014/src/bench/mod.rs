//! Load on any two ETSI GS QKD 014 KMEs, and on the baseline: a server that does nothing.
//!
//! The load is a closed loop, or an open loop at a given rate, in which an operation's time starts when it
//! was due. The baseline is measured in the same minute, so a figure is a ratio rather than a property of the
//! machine. Keys are compared with their twins and wiped, and never appear in a report.

pub(crate) mod baseline;
mod error;
mod kept;
mod load;
mod pace;
mod processes;
mod report;
mod requests;
mod rounds;
mod setup;
mod stock;
mod tally;
mod times;
mod twins;
mod windows;
mod worker;

pub use error::BenchError;
pub use processes::ServerUse;
pub use report::{Figures, Ratio, Report, Round, Run};
pub use rounds::{News, run};
pub use setup::{Baseline, End, Http, Load, Operation, Order, Setup, Supply};
pub use times::Times;
pub use twins::Twins;
pub use windows::{Course, OverTime, Window};
