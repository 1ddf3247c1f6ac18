# Stands beside a test server of Postgres, started by postgres.rs as `bash -c` with: folder, data folder, seconds
# without users after which everything ends, folder of Postgres's programs, and the command to become its user.
folder=$1 data=$2 idle_max=$3 binaries=$4
shift 4

cd "$folder" || exit
exec 9>watch.lock 7>start.lock
# Without truncation of what the users write: its time is the time of the last one that came.
exec 8>>users.lock
flock -n 9 || exit 0

# Databases are named t_PROCESS_NUMBER.
reap() {
    local name pid port
    port=$(cat port) || return
    for name in $("$binaries/psql" -X -A -t -U dqkd -h "$data" -p "$port" -d postgres -c \
        "SELECT datname FROM pg_database WHERE datname LIKE 't\\_%'" 7>&- 8>&- 9>&-); do
        pid=${name#t_} pid=${pid%%_*}
        [ -d "/proc/$pid" ] || "$binaries/psql" -X -q -U dqkd -h "$data" -p "$port" -d postgres -c \
            "DROP DATABASE IF EXISTS $name WITH (FORCE)" 7>&- 8>&- 9>&-
    done
}

idle=0 round=0
while sleep 1 7>&- 8>&- 9>&-; do
    # A private server erases its folder itself when it is dropped.
    [ -e start.lock ] || exit 0
    round=$((round + 1))
    # With the first lock held nobody comes, with the second nobody is there.
    flock -n 7 || { idle=0; continue; }
    if flock -n 8; then
        idle=$((idle + 1))
        since=$(($(date +%s) - $(stat -c %Y users.lock)))
        if [ "$idle" -ge "$idle_max" ] && [ "$since" -ge "$idle_max" ]; then
            "$@" "$binaries/pg_ctl" -D "$data" stop -m immediate -w -t 60 7>&- 8>&- 9>&-
            rm -rf "$data" "$folder"
            exit 0
        fi
        flock -u 8
    else
        idle=0
    fi
    flock -u 7
    [ $((round % 5)) != 0 ] || reap
done
