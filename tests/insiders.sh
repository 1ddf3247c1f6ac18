#!/usr/bin/env bash
# Attacks by holders of valid certificates, in their long versions, as a Markdown table (docs/lab/insiders.md).
# `bash tests/insiders.sh [--before PROGRAM]`: attacks this tree's release build, and an older dqkd beside it. Takes
# about ten minutes for each program, and wants the machine to itself. DQKD_INSIDERS_LENGTH=short is quicker.
set -euo pipefail
cd "$(dirname "$0")/.."

before=
if [ "${1:-}" = --before ] && [ $# = 2 ]; then
    before=$(realpath "$2")
elif [ $# != 0 ]; then
    echo "usage: bash tests/insiders.sh [--before PROGRAM]" >&2
    exit 2
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# The attackers and the honest applications are built like the program: their own time counts, too.
cargo build --locked --release --bin dqkd
cargo test --locked --release --test insiders --no-run

attack() { # PROGRAM FILE
    DQKD_BIN=$1 DQKD_INSIDERS_OUT=$2 RUST_BACKTRACE=0 \
        cargo test --locked --release --quiet --test insiders -- --ignored --exact table::table >&2
}
[ -z "$before" ] || attack "$before" "$out/before"
attack "$PWD/target/release/dqkd" "$out/after"

if [ -z "$before" ]; then
    printf '| attack | result |\n|---|---|\n'
    sed 's/^/| /; s/\t/ | /; s/$/ |/' "$out/after"
else
    # Both files have the same attacks in the same order.
    printf '| attack | before | after |\n|---|---|---|\n'
    paste "$out/before" <(cut -f 2 "$out/after") | sed 's/^/| /; s/\t/ | /g; s/$/ |/'
fi
