#!/usr/bin/env bash
# Makes the development certificates anew: unsafe-* beside this script, from a fresh authority whose private
# keys are thrown away. Needs nothing but dqkd: $DQKD, or `cargo run` in this clone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

dqkd() {
    if [ -n "${DQKD:-}" ]; then "$DQKD" "$@"; else cargo run --quiet --manifest-path "$here/../Cargo.toml" -- "$@"; fi
}

days=3650
pki="$work/pki"
dqkd pki init --dir "$pki" --trust-domain dqkd.example --days $days --crl-days $days >/dev/null 2>&1
server=(--dns localhost --ip 127.0.0.1 --ip ::1)
for kme in site-a site-b; do
    dqkd pki issue kme $kme --dir "$pki" --out "$work/out" --days $days "${server[@]}" >/dev/null
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 -v | tr -d " \n" >"$work/out/$kme.kek")
done
for pool in pool-1 pool-2 pool-3; do
    dqkd pki issue pool $pool --dir "$pki" --out "$work/out" --days $days "${server[@]}" >/dev/null
done
for sae in alice dave bob carol; do
    dqkd pki issue sae $sae --dir "$pki" --out "$work/out" --days $days --p12-password unsafe >/dev/null
done
dqkd pki issue operator olga --dir "$pki" --out "$work/out" --days $days --p12-password unsafe >/dev/null
cp "$pki/ca.pem" "$pki/crl.pem" "$work/out/"

rm -f "$here"/unsafe-*
for file in "$work"/out/*; do
    cp -p "$file" "$here/unsafe-$(basename "$file")"
done
DQKD="${DQKD:-}" bash "$here/list.sh"
echo "made anew: $here/unsafe-*, crates/mtls/src/development_keys.txt"
