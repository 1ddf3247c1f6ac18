//! A network of daemons in processes of their own, and curl to talk to them.

mod curl;
mod link;
mod network;
mod process;

pub(crate) use curl::{Answer, Curl};
pub(crate) use link::TcpLink;
pub(crate) use network::{Network, Ports, Sae, stored_keys};
pub(crate) use process::{Daemon, Killed, PATIENCE, dqkd, eventually, lines_of, output_of, run_to_end};
