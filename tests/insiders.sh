#!/usr/bin/env bash
# Attacks by holders of valid certificates, in their long versions, as a Markdown table (docs/lab/insiders.md).
# `bash tests/insiders.sh [--before PROGRAM] [--after PROGRAM]`: attacks this tree's release build, or the program given,
# and an older dqkd beside it. Takes a quarter of an hour for each program, and wants the machine to itself.
# DQKD_INSIDERS_LENGTH=short is quicker.
set -euo pipefail
cd "$(dirname "$0")/.."

before= after=
while [ $# -ge 2 ]; do
    case $1 in
    --before) before=$(realpath "$2") ;;
    --after) after=$(realpath "$2") ;;
    *) break ;;
    esac
    shift 2
done
if [ $# != 0 ]; then
    echo "usage: bash tests/insiders.sh [--before PROGRAM] [--after PROGRAM]" >&2
    exit 2
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# The attackers and the honest applications are built like the program: their own time counts, too.
profile=()
if [ -z "$after" ]; then
    profile=(--release)
    cargo build --locked --release --bin dqkd
    after=$PWD/target/release/dqkd
fi
cargo test --locked "${profile[@]}" --test insiders --no-run

attack() { # PROGRAM FILE
    DQKD_BIN=$1 DQKD_INSIDERS_OUT=$2 RUST_BACKTRACE=0 \
        cargo test --locked "${profile[@]}" --quiet --test insiders -- --ignored --exact table::table >&2
}
[ -z "$before" ] || attack "$before" "$out/before"
attack "$after" "$out/after"

if [ -z "$before" ]; then
    printf '| attack | result |\n|---|---|\n'
    sed 's/^/| /; s/\t/ | /; s/$/ |/' "$out/after"
else
    # Both files have the same attacks in the same order.
    printf '| attack | before | after |\n|---|---|---|\n'
    paste "$out/before" <(cut -f 2 "$out/after") | sed 's/^/| /; s/\t/ | /g; s/$/ |/'
fi
