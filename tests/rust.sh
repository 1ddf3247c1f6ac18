#!/usr/bin/env bash
# Every test of the crate. `bash tests/rust.sh [ARGUMENTS FOR THE TEST RUNNER]`.
set -euo pipefail
cd "$(dirname "$0")/.."

# `--all-targets` builds examples as tests only; tests/it/wrong_kme.rs starts this one.
cargo build --locked --example wrong-kme
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --all-targets "$@"
else
    cargo test --locked --all-targets "$@"
fi
cargo test --locked --doc
