//! The command line: what each command reads, prints and ends with.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. Errors go to standard error and say what to do next.

mod bench;
mod conformance;
mod demo;
mod request;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use zeroize::Zeroizing;

/// Client, tester and load generator for any ETSI GS QKD 014 KME
#[derive(Debug, Parser)]
#[command(name = "qkd014", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What can be asked of a KME for a peer (ETSI GS QKD 014, Get status)
    Status(request::StatusArgs),
    /// Fetch fresh keys (ETSI GS QKD 014, Get key)
    Enc(request::EncArgs),
    /// Fetch keys by their IDs (ETSI GS QKD 014, Get key with key IDs)
    Dec(request::DecArgs),
    /// Test any two KMEs against ETSI GS QKD 014 (docs/conformance.md)
    Conformance(Box<conformance::ConformanceArgs>),
    /// Put load on two KMEs and measure them, also against a server that does nothing
    Bench(Box<bench::BenchArgs>),
    #[command(name = crate::bench::hello::COMMAND, hide = true)]
    BenchHello(bench::HelloArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// It failed: exit code 1.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

type Outcome = Result<(), Failure>;

/// Runs the command of this process's command line.
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
        Command::BenchHello(args) => bench::hello(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "qkd014", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs `work` on a runtime of its own.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    Ok(runtime.block_on(work))
}

/// The first line of a file with a password.
fn first_line(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
