#!/usr/bin/env bash
# Schemathesis against the SAE API of a live site, with the description that its daemon serves.
#
# With every check, which is the default. Two runs, bounded to a minute each: names that exist, where every request
# of the right form has to be served; then names at random. Needs python3 with venv, curl and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.32.5
seconds=50
# Of each operation. Runs make several times as many; fewer mean that they did not test.
requests_min=20

cargo build --locked
dqkd=$(cargo metadata --locked --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/dqkd
# Made again when the version or Python changes.
venv=$(dirname "$dqkd")/../schemathesis-$version-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! [ -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "schemathesis==$version"
    touch "$venv/complete"
fi

dir=$(mktemp -d)
daemons=()
stop() {
    local status=$?
    [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
    wait
    if [ "$status" != 0 ]; then
        tail -n 5 "$dir"/*.log >&2 || true
    fi
    rm -rf "$dir"
}
trap stop EXIT

"$dqkd" demo --generate-only --dir "$dir/demo" >/dev/null
value() { # EXPRESSION: of demo.json
    python3 -c "import json, sys; demo = json.load(open(sys.argv[1])); print($1)" "$dir/demo/demo.json"
}
start() { # COMMAND NAME
    "$dqkd" "$1" --config "$dir/demo/$2.toml" >"$dir/$2.log" 2>&1 &
    daemons+=($!)
}
for pool in pool-1 pool-2 pool-3; do start pool "$pool"; done
# A debug build makes no megabyte of keys in the time of a request. The description says these limits.
export DQKD__KEYS__MAX_PER_REQUEST=8 DQKD__KEYS__MAX_SIZE_BITS=2048
# known_names.py knows how long keys live.
export DQKD__KEYS__TTL=1h
for site in site-a site-b; do start serve "$site"; done

admin=$(value 'demo["sites"][0]["admin_url"]')
for site in 0 1; do
    url=$(value "demo['sites'][$site]['admin_url']")
    curl -sS --fail --retry 60 --retry-delay 1 --retry-all-errors -o /dev/null "$url/readyz" 2>>"$dir/curl.log"
done
curl -sS --fail -o "$dir/random.json" "$admin/openapi.json"
python3 tests/schemathesis/known_names.py <"$dir/random.json" >"$dir/known.json"

run() { # NAME EXPECTED OPTIONS...
    local name=$1 expected=$2
    shift 2
    echo "-- schemathesis: $name names"
    "$venv/bin/schemathesis" --config-file tests/schemathesis/schemathesis.toml run "$dir/$name.json" \
        --url "$(value 'demo["sites"][0]["sae_url"]')" --tls-verify "$(value 'demo["ca"]')" \
        --request-cert "$(value 'demo["sites"][0]["saes"][0]["cert"]')" \
        --request-cert-key "$(value 'demo["sites"][0]["saes"][0]["key"]')" \
        --mode all --continue-on-failure --max-time "$seconds" --request-timeout 20 \
        --generation-database none --no-color \
        --report ndjson --report-ndjson-path "$dir/$name.ndjson" "$@"
    python3 tests/schemathesis/count.py "$requests_min" "$expected" <"$dir/$name.ndjson"
}
run known served
# Names at random are unknown to the directory, which is 400 however well the request is written.
run random any --exclude-checks positive_data_acceptance
