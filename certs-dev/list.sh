#!/usr/bin/env bash
# Writes crates/mtls/src/development_keys.txt: what is public here, so that a daemon knows it under every name. Needs
# nothing but dqkd: $DQKD, or `cargo run` in this clone.
set -euo pipefail
cd "$(dirname "$0")"

dqkd() {
    if [ -n "${DQKD:-}" ]; then "$DQKD" "$@"; else cargo run --quiet --manifest-path ../Cargo.toml -- "$@"; fi
}

digest() { sha256sum <"$1" | cut -d ' ' -f 1; }

{
    # The CA first: the issuing CA is in many files, and is named after the first of them.
    for file in unsafe-ca.pem $(ls unsafe-*.pem | grep -v -e unsafe-ca.pem -e unsafe-crl.pem); do
        dqkd pki show "$file" | sed -n "s/^key  *sha256:\(.*\)/key \1 $file/p"
    done
    # The file of a KEK is its digits and nothing else.
    for file in unsafe-*.kek; do echo "kek $(digest "$file") $file"; done
    for file in unsafe-*.key unsafe-*.kek; do echo "file $(digest "$file") $file"; done
} | awk '!seen[$1 $2]++' >../crates/mtls/src/development_keys.txt
