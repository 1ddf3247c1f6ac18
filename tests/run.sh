#!/usr/bin/env bash
# Installs what the tests need, then runs every test. `bash tests/run.sh [ARGUMENTS FOR THE TEST RUNNER]`; with
# arguments it leaves out the fault runs, which take two to three minutes (tests/faults/main.rs has their settings).
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian packages: the real curl, faketime for a clock that is turned back, mount for a disk that is full.
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null && return
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null; then
        echo "tests need $1: install it (Debian: package $2) and try again" >&2
        exit 1
    fi
    $sudo apt-get update -q >/dev/null
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$2" >/dev/null
}
need curl curl
need faketime faketime
need git git
need cc gcc
need mkfs.ext4 e2fsprogs

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --all-targets "$@"
else
    cargo test --locked --all-targets "$@"
fi
cargo test --locked --doc
if [ $# = 0 ]; then
    # One after the other, with the machine to themselves.
    cargo test --locked --test faults -- --ignored --nocapture --test-threads 1
fi
