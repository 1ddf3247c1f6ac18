#!/usr/bin/env bash
# Installs what the tests need, then runs every test. `bash tests/run.sh [ARGUMENTS FOR THE TEST RUNNER]`; with
# arguments it leaves out the fault runs, which take two to three minutes (tests/faults/main.rs has their settings).
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian packages: the real curl, faketime for a clock that is turned back, mount for a disk that is full.
have() { # COMMAND...
    "$@" >/dev/null 2>&1
}
need() { # COMMAND PACKAGE
    have command -v "$1" || install "$2"
}
install() { # PACKAGE
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null; then
        echo "tests need what Debian has in its package $1: install it and try again" >&2
        exit 1
    fi
    local said
    said=$(mktemp)
    if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$1"; } >"$said" 2>&1; then
        cat "$said" >&2
        echo "Debian's package $1 could not be installed; apt says why above" >&2
        exit 1
    fi
    rm -f "$said"
}
need curl curl
need faketime faketime
need git git
need openssl openssl
need cc gcc
# File systems that fill up and turn read-only.
need mount mount
need chattr e2fsprogs
need python3 python3
# Databases and load balancers of the tests' own; what Debian starts by itself is not used.
[ -x "$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | head -n 1)" ] || install postgresql
need haproxy haproxy
need setpriv util-linux
# Debian's python3 makes no virtual environments without it.
have python3 -c 'import ensurepip, venv' || install python3-venv
# What the clients of others are built against.
need pkg-config pkg-config
have pkg-config --exists openssl || install libssl-dev
have pkg-config --exists libsodium || install libsodium-dev

step() { # SCRIPT ARGUMENTS...
    printf '\n== tests/%s (%s s)\n' "$1" "$SECONDS"
    bash "tests/$1" "${@:2}"
}
# Everything is there, so no test may be left out.
DQKD_TESTS=all step rust.sh "$@"
step clients.sh
step schemathesis.sh
step replicas.sh
[ $# != 0 ] || step faults.sh
