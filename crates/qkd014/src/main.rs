//! The `qkd014` program.

use std::process::ExitCode;

/// A load generator must cost little: what it uses is taken from the servers that it measures on the same machine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    qkd014::cli::main()
}
