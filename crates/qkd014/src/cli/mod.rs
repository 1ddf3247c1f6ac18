//! The command line: arguments, output and exit codes of each command.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. Errors go to standard error and say what to do next.

mod bench;
mod conformance;
mod demo;
mod outcome;
mod password;
mod request;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use outcome::{Failure, Outcome};

/// Client, tester and load generator for any ETSI GS QKD 014 KME
#[derive(Debug, Parser)]
#[command(name = "qkd014", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how many keys a KME can deliver, and its limits (Get status)
    Status(request::StatusArgs),
    /// Fetch fresh keys (Get key)
    Enc(request::EncArgs),
    /// Fetch keys by their IDs (Get key with key IDs)
    Dec(request::DecArgs),
    /// Test any two KMEs against the standard (docs/conformance.md)
    Conformance(Box<conformance::ConformanceArgs>),
    /// Put load on any two KMEs and measure them, also against a server that does nothing
    Bench(Box<bench::BenchArgs>),
    #[command(name = crate::bench::baseline::COMMAND, hide = true)]
    BaselineServer(bench::BaselineServerArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("qkd014: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            eprintln!("qkd014: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Status(args) => request::status(args),
        Command::Enc(args) => request::enc(args),
        Command::Dec(args) => request::dec(args),
        Command::Conformance(args) => conformance::run(*args),
        Command::Bench(args) => bench::run(*args),
        Command::BaselineServer(args) => bench::baseline_server(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "qkd014", &mut std::io::stdout());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
