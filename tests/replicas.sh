#!/usr/bin/env bash
# Two sites on this machine without containers: each has two replicas of the daemon on a Postgres of its own, and
# HAProxy in front of them in TCP mode. Shows that a key handed out by any replica of site A is retrieved through any
# replica of site B, and that a killed replica is not missed. docs/deployment.md describes the arrangement.
#
# `bash tests/replicas.sh` proves it and takes everything away again; with `--stay` it goes on until Ctrl-C.
# DQKD_BIN=FILE is the program (default: it is built), DQKD_REPLICAS_PORT the first of 40 ports.
# Needs Debian's postgresql, haproxy and curl; as root, Postgres runs as its package's user.
set -euo pipefail
cd "$(dirname "$0")/.."

port=${DQKD_REPLICAS_PORT:-25400}
program=${DQKD_BIN:-}
if [ -z "$program" ]; then
    cargo build --locked --quiet
    program=$PWD/target/debug/dqkd
fi
postgres=$(find /usr/lib/postgresql -path '*/bin/initdb' | sort -V | tail -n 1)
postgres=${postgres%/initdb}
as_postgres=()
[ "$(id -u)" != 0 ] || as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups)

dir=$(mktemp -d)
chmod 711 "$dir"
processes=()
end() {
    local status=$?
    [ ${#processes[@]} = 0 ] || kill "${processes[@]}" 2>/dev/null || true
    wait
    for site in a b; do
        [ ! -e "$dir/postgres-$site/postmaster.pid" ] ||
            "${as_postgres[@]}" "$postgres/pg_ctl" -D "$dir/postgres-$site" stop -m fast -w >/dev/null || true
    done
    if [ "$status" != 0 ]; then
        echo "failed; the ends of the logs:" >&2
        tail -n 5 "$dir"/*.log "$dir"/postgres-?/server.log >&2 || true
    fi
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 0' INT TERM

# Runs in the background until the end; its number is in $started.
start() { # LOG COMMAND ARGUMENTS...
    "${@:2}" >>"$dir/$1.log" 2>&1 </dev/null &
    started=$!
    processes+=("$started")
}
until_true() { # WHAT COMMAND...
    for _ in $(seq 600); do
        ! "${@:2}" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    echo "never happened: $1" >&2
    return 1
}

# One database server for each site, reached through its socket. The daemons' role is no superuser.
database() { # SITE
    local data=$dir/postgres-$1
    install -d -m 700 "$data"
    [ ${#as_postgres[@]} = 0 ] || chown postgres:postgres "$data"
    "${as_postgres[@]}" env LC_ALL=C.UTF-8 "$postgres/initdb" -D "$data" --username=postgres --auth=trust \
        --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    # The socket beside the data: Debian's usual folder for sockets belongs to the package's own servers.
    "${as_postgres[@]}" "$postgres/pg_ctl" -D "$data" -l "$data/server.log" -w start \
        -o "-c listen_addresses='' -c unix_socket_directories='$data'" >/dev/null
    "$postgres/psql" -X -q -h "$data" -U postgres -c "CREATE ROLE dqkd LOGIN" -c "CREATE DATABASE dqkd OWNER dqkd"
}

# The same KME twice: other addresses to listen at, one database. Paths in the file are relative to it.
replica_config() { # SITE NUMBER SITE'S-FIRST-PORT REPLICA'S-FIRST-PORT
    local url="postgres://dqkd@${dir//\//%2F}%2Fpostgres-$1/dqkd"
    sed -e "s|^sae = .*|sae = \"127.0.0.1:$4\"|" -e "s|^peer = .*|peer = \"127.0.0.1:$(($4 + 1))\"|" \
        -e "s|^admin = .*|admin = \"127.0.0.1:$(($4 + 2))\"|" -e "s|^url = \"sqlite:.*|url = \"$url\"|" \
        "$dir/demo/site-$1.toml" >"$dir/demo/site-$1-$2.toml"
    # Unready for a moment before a stop, so that HAProxy notices; two downloads of each pool are expected.
    printf '\n[limits]\ndrain_delay = "2s"\n' >>"$dir/demo/site-$1-$2.toml"
    sed -i -e '/^\[\[peer\]\]/a replicas = 2' "$dir/demo/site-$1-$2.toml"
}

# The site's own addresses are the load balancer's. Ready replicas come first; where none is ready, connections still
# go to one that listens, which has ready keys to give or says when to come again.
balancer_config() { # SITE SITE'S-FIRST-PORT FIRST-REPLICA'S-FIRST-PORT
    cat <<END
defaults
    mode tcp
    timeout connect 1s
    timeout client 15m
    timeout server 15m
    timeout check 3s
    retries 3
    option redispatch 1
    option allbackups
    option httpchk GET /readyz
    default-server inter 500ms fall 2 rise 1
END
    for listener in 0 1; do
        printf 'listen port-%s\n    bind 127.0.0.1:%s\n' "$listener" $(($2 + listener))
        for replica in 0 1; do
            local first=$(($3 + 3 * replica))
            printf '    server replica-%s 127.0.0.1:%s check port %s\n' $((replica + 1)) $((first + listener)) \
                $((first + 2))
            printf '    server unready-%s 127.0.0.1:%s backup\n' $((replica + 1)) $((first + listener))
        done
    done
}

"$program" demo --generate-only --base-port "$port" --dir "$dir/demo" >/dev/null
declare -A site_port=([a]=$port [b]=$((port + 3))) replica_port=([a]=$((port + 20)) [b]=$((port + 26)))
declare -A replica
for pool in 1 2 3; do
    start "pool-$pool" "$program" pool --config "$dir/demo/pool-$pool.toml"
done
for site in a b; do
    database "$site"
    balancer_config "$site" "${site_port[$site]}" "${replica_port[$site]}" >"$dir/haproxy-$site.cfg"
    haproxy -c -q -f "$dir/haproxy-$site.cfg"
    start "haproxy-$site" haproxy -db -f "$dir/haproxy-$site.cfg"
    for number in 1 2; do
        replica_config "$site" "$number" "${site_port[$site]}" $((replica_port[$site] + 3 * (number - 1)))
        "$program" check-config "$dir/demo/site-$site-$number.toml" >/dev/null
        start "site-$site-$number" "$program" serve --config "$dir/demo/site-$site-$number.toml"
        replica[$site$number]=$started
    done
done

ask() { # SAE URL CURL'S ARGUMENTS...
    curl --silent --show-error --fail --max-time 20 --cacert "$dir/demo/pki/ca.pem" \
        --cert "$dir/demo/pki/$1.pem" --key "$dir/demo/pki/$1.key" "${@:3}" "$2"
}
is_ready() { # ADMIN-PORT
    [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$1/readyz")" = 200 ]
}
for site in a b; do
    for number in 1 2; do
        until_true "replica $number of site $site is ready" is_ready \
            $((replica_port[$site] + 3 * (number - 1) + 2))
    done
done
api() { # PORT SAE CALL
    printf 'https://127.0.0.1:%s/api/v1/keys/%s' "$1" "$2/$3"
}
until_true "site A has keys" ask alice "$(api "${site_port[a]}" bob enc_keys)"

# A key from alice at A to bob at B through the given ports; the same bytes at both.
share() { # HOW PORT-A PORT-B
    local handed retrieved id
    handed=$(ask alice "$(api "$2" bob enc_keys)")
    id=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["keys"][0]["key_ID"])' <<<"$handed")
    retrieved=$(ask bob "$(api "$3" alice "dec_keys?key_ID=$id")")
    python3 - "$handed" "$retrieved" <<'PYTHON'
import json, sys
handed, retrieved = (json.loads(text)["keys"][0] for text in sys.argv[1:])
assert handed == retrieved and len(handed["key"]) == 44, "the keys differ"
PYTHON
    echo "ok: $1"
}
for from in 1 2; do
    for to in 1 2; do
        share "handed out by replica $from of A, retrieved through replica $to of B" \
            $((replica_port[a] + 3 * (from - 1))) $((replica_port[b] + 3 * (to - 1)))
    done
done
share "through both load balancers" "${site_port[a]}" "${site_port[b]}"
kill -KILL "${replica[a1]}" "${replica[b2]}"
wait "${replica[a1]}" "${replica[b2]}" 2>/dev/null || true
for count in 1 2 3 4; do
    share "through both load balancers, $count after a replica of each site was killed" \
        "${site_port[a]}" "${site_port[b]}"
done
start site-a-1 "$program" serve --config "$dir/demo/site-a-1.toml"
until_true "the killed replica is ready again" is_ready $((replica_port[a] + 2))
share "handed out by the replica that was started again" "${replica_port[a]}" "${site_port[b]}"

if [ "${1:-}" = --stay ]; then
    start site-b-2 "$program" serve --config "$dir/demo/site-b-2.toml"
    echo "running: applications at https://127.0.0.1:${site_port[a]} and https://127.0.0.1:${site_port[b]}"
    echo "files, certificates and logs are in $dir; Ctrl-C ends it and erases them"
    sleep infinity & wait $!
fi
