#!/usr/bin/env bash
# Installs what the tests need, then runs every test. `bash tests/run.sh [ARGUMENTS FOR THE TEST RUNNER]`.
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
# For the clients of others: python3 -m venv, and the libraries that etsi014-client is built against.
need python3 python3
python3 -c 'import ensurepip' 2>/dev/null || need ensurepip python3-venv
need pkg-config pkg-config
pkg-config --exists openssl || need libssl libssl-dev
pkg-config --exists libsodium || need libsodium libsodium-dev

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --all-targets "$@"
else
    cargo test --locked --all-targets "$@"
fi
cargo test --locked --doc
bash tests/clients.sh
