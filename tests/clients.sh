#!/usr/bin/env bash
# Clients of others, unmodified, from their registries, against a running network of three sites: one line for each
# check, a count, and failure when any check or any client fails. A client that cannot be built is a failure.
#
# Needs what tests/run.sh installs: OpenSSL and libsodium to build against, pkg-config, Python with venv.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
clients=$target/clients
work=$(mktemp -d)
network=

finish() {
    local status=$?
    if [ -n "$network" ] && kill "$network" 2>/dev/null; then
        # The demo stops all of its daemons at SIGTERM and then ends with 0.
        for _ in $(seq 300); do kill -0 "$network" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$network" 2>/dev/null && echo "the network did not stop" >&2 && status=1
        wait "$network" || status=1
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# etsi014-client would write a C header into the registry's copy of its own source.
export E14_NO_BINDINGS=1
timeout 600 cargo build --locked --quiet --bin dqkd
CARGO_TARGET_DIR=$clients timeout 900 cargo build --locked --quiet --manifest-path tests/clients/Cargo.toml

python=$clients/python
wanted=tests/clients/python/requirements.txt
if ! cmp -s "$wanted" "$python/installed.txt"; then
    rm -rf "$python"
    python3 -m venv "$python"
    timeout 300 "$python/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$wanted"
    cp "$wanted" "$python/installed.txt"
fi

# Exec, so that the number is that of the demo itself.
(exec "$target/debug/dqkd" demo --sites 3 --dir "$work/demo" >"$work/network.out" 2>"$work/network.log") &
network=$!
for _ in $(seq 600); do
    grep -q '^Ctrl-C' "$work/network.out" && break
    kill -0 "$network" 2>/dev/null || break
    sleep 0.1
done
if ! grep -q '^Ctrl-C' "$work/network.out"; then
    echo "the network did not start:" >&2
    cat "$work/network.out" "$work/network.log" >&2
    exit 1
fi

run() { # NAME COMMAND...
    local name=$1 before after
    shift
    before=$(wc -l <"$work/told")
    if ! timeout 180 "$@" "$work/demo/demo.json" | tee -a "$work/told"; then
        echo "FAIL  $name as a whole" | tee -a "$work/told"
    fi
    after=$(wc -l <"$work/told")
    [ "$after" -gt "$before" ] || echo "FAIL  $name checked nothing" | tee -a "$work/told"
}
: >"$work/told"
run etsi014 "$clients/debug/etsi014"
run etsi014-client "$clients/debug/etsi014-client"
export PYTHONDONTWRITEBYTECODE=1
run etsi-qkd-014-client "$python/bin/python" tests/clients/python/etsi_qkd_014_client_checks.py
run qkdsec "$python/bin/python" tests/clients/python/qkdsec_checks.py

failed=$(grep -c '^FAIL' "$work/told" || true)
echo "clients: $(grep -c '^ok' "$work/told" || true) checks held, $failed failed"
[ "$failed" = 0 ] || { tail -50 "$work/network.log" >&2; exit 1; }
