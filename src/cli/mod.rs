//! The command line: what each command reads, prints and ends with.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. Errors go to standard error and say what to
//! do next. Starts daemons through [`crate::app`]; decides nothing itself.

mod bench;
mod check;
mod conformance;
mod daemon;
mod demo;
mod pki;
mod ready;
mod request;
mod self_test;
mod store;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::ConfigError;
use crate::telemetry;

/// Multi-site Key Management Entity: software key agreement over ordinary networks, delivered through
/// ETSI GS QKD 014; not quantum key distribution by physics.
#[derive(Debug, Parser)]
#[command(name = "dqkd", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one KME until SIGTERM or Ctrl-C
    Serve(ConfigArg),
    /// Run one random pool server until SIGTERM or Ctrl-C
    Pool(ConfigArg),
    /// Two sites and three pool servers on this machine: alice fetches a key at site-a, bob the same at site-b
    Demo(demo::DemoArgs),
    /// A small certificate authority for KMEs, SAEs, pool servers and operators
    Pki(pki::PkiArgs),
    /// Judge configuration files without starting anything
    CheckConfig {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Bring the store of a KME to this program's schema
    Migrate(ConfigArg),
    /// Move a store between databases
    Store(store::StoreArgs),
    /// Ask a daemon's admin listener whether it is ready to serve
    Ready(ready::ReadyArgs),
    /// What can be asked of a KME for a peer (ETSI GS QKD 014, Get status)
    Status(request::StatusArgs),
    /// Fetch fresh keys (ETSI GS QKD 014, Get key)
    Enc(request::EncArgs),
    /// Fetch keys by their IDs (ETSI GS QKD 014, Get key with key IDs)
    Dec(request::DecArgs),
    /// Test any two KMEs against ETSI GS QKD 014 (docs/conformance.md)
    Conformance(Box<conformance::ConformanceArgs>),
    /// Put load on two KMEs and measure them, also against a server that does nothing (docs/lab/performance.md)
    Bench(Box<bench::BenchArgs>),
    #[command(name = crate::bench::hello::COMMAND, hide = true)]
    BenchHello(bench::HelloArgs),
    /// Known answers of every primitive and of the engine
    SelfTest {
        /// Check these vectors instead of the built-in ones
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// Configuration file (docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failure {
    /// The command line or the configuration is wrong: exit code 2.
    Usage(String),
    /// It failed: exit code 1.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

type Outcome = Result<(), Failure>;

/// Runs the command of this process's command line.
pub fn main() -> ExitCode {
    telemetry::install_panic_hook();
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("dqkd: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            eprintln!("dqkd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Serve(arg) => daemon::serve(&arg.config),
        Command::Pool(arg) => daemon::pool(&arg.config),
        Command::Demo(args) => demo::run(args),
        Command::Pki(args) => Ok(pki::run(args)?),
        Command::CheckConfig { files } => check::run(&files),
        Command::Migrate(arg) => daemon::migrate(&arg.config),
        Command::Store(args) => store::run(args),
        Command::Ready(args) => ready::run(&args),
        Command::Status(args) => request::status(args),
        Command::Enc(args) => request::enc(args),
        Command::Dec(args) => request::dec(args),
        Command::Conformance(args) => conformance::run(*args),
        Command::Bench(args) => bench::run(*args),
        Command::BenchHello(args) => bench::hello(args),
        Command::SelfTest { vectors } => self_test::run(vectors.as_deref()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dqkd", &mut std::io::stdout());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
