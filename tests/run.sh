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
install() { # PACKAGE...
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null; then
        echo "tests need what Debian has in its packages $*: install them and try again" >&2
        exit 1
    fi
    local said
    said=$(mktemp)
    if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } >"$said" 2>&1; then
        cat "$said" >&2
        echo "Debian's packages $* could not be installed; apt says why above" >&2
        exit 1
    fi
    rm -f "$said"
}
# Postgres runs as a user of its own, who must be able to reach its files. Debian's root folder has mode 755; that of a
# root made by hand may be closed.
if [ "$(id -u)" = 0 ] && [ "$(($(stat -c %a /) % 10 & 1))" = 0 ]; then
    echo "only root may enter /: chmod 755 /, because Postgres runs as a user of its own" >&2
    chmod 755 /
fi
need curl curl
need faketime faketime
need git git
need openssl openssl
have command -v cc || install gcc libc6-dev
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
