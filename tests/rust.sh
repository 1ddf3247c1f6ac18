#!/usr/bin/env bash
# Every test of the workspace in Rust. `bash tests/rust.sh [ARGUMENTS FOR THE TEST RUNNER]`. The runner is cargo-nextest where it is
# installed, unless DQKD_PLAIN is set, and else `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

# A snapshot that differs fails its test and is not written.
export INSTA_UPDATE=no

if [ -z "${DQKD_PLAIN:-}" ] && cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --all-targets "$@"
else
    cargo test --locked --workspace --all-targets "$@"
fi
cargo test --locked --workspace --doc
