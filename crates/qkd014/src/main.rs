//! The `qkd014` program.

use std::process::ExitCode;

/// A load generator must use little processor time: the servers that it measures may share its machine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    qkd014::cli::main()
}
