//! The commands of `dqkd`: their arguments, output and exit codes.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. Errors go to standard error and say what to
//! do next. [`crate::app`] starts the daemons.

mod check;
mod daemon;
mod demo;
mod pki;
mod ready;
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
    /// Run two sites and three pool servers on this machine, and fetch one key at both sites
    Demo(demo::DemoArgs),
    /// Make and revoke certificates for KMEs, SAEs, pool servers and operators
    Pki(pki::PkiArgs),
    /// Check configuration files without starting anything
    CheckConfig {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Bring the schema of a KME's store up to date
    Migrate(ConfigArg),
    /// Copy a store to another database
    Store(store::StoreArgs),
    /// Ask a daemon whether it is ready to serve
    Ready(ready::ReadyArgs),
    /// Check every primitive and the engine against known answers
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

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The command line or the configuration is wrong: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
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

/// Runs the command that this process was called with.
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
        Command::SelfTest { vectors } => self_test::run(vectors.as_deref()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dqkd", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs `work` on a new runtime.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// The help of `command` and of all its commands.
    fn help_of(command: &mut clap::Command, line: &str, text: &mut String) {
        let is_long = command.get_long_about().is_some();
        let own = if is_long { command.render_long_help() } else { command.render_help() };
        writeln!(text, "$ {line} --help\n{own}").unwrap();
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            help_of(inner, &format!("{line} {}", inner.get_name()), text);
        }
    }

    #[test]
    fn the_help_of_every_command() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        help_of(&mut command, "dqkd", &mut text);
        insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!("help", text) });
    }
}
