#!/usr/bin/env bash
# The fault runs: real processes killed, stopped, cut off and starved, one run after the other, with the machine to
# themselves. Not the one that is there for its figures only. DQKD_FAULTS_MINUTES and others are in tests/faults/main.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

# Some start qkd014 beside the daemons.
cargo build --locked --workspace --bins --examples
cargo test --locked --workspace --test faults -- --ignored --nocapture --test-threads 1 \
    --skip keys_over_a_long_line
