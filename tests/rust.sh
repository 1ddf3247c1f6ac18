#!/usr/bin/env bash
# Every test of the workspace in Rust. `bash tests/rust.sh [ARGUMENTS FOR THE TEST RUNNER]`.
set -euo pipefail
cd "$(dirname "$0")/.."

# Tests start the programs of all packages, and an example.
cargo build --locked --workspace --bins --examples
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --all-targets "$@"
else
    cargo test --locked --workspace --all-targets "$@"
fi
cargo test --locked --workspace --doc
