//! The `dqkd` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    dqkd::cli::main()
}
