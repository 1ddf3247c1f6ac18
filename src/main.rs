//! The `dqkd` program.

use std::process::ExitCode;

/// Faster than the allocator of glibc at what requests allocate. SQLite and the cryptography keep theirs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dqkd::cli::main()
}
