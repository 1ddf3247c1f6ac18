#!/usr/bin/env bash
# Makes the secrets of one site that no CA issues: passwords and certificate of its Postgres, and its KEK. Never
# replaces a file. Run `bash deploy/prepare.sh` as the user who shall own them, then follow docs/deployment.md.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
fresh() { # FILE
    [ ! -e "secrets/$1" ] && echo "made secrets/$1"
}
for name in db-password postgres-password; do
    if fresh "$name"; then printf '%s' "$(openssl rand -hex 32)" > "secrets/$name"; fi
done
if fresh kek; then openssl rand -hex 32 > secrets/kek; fi
if fresh db.key; then
    # Signed by itself: only the replicas trust it, and only as this database.
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=postgres \
        -addext subjectAltName=DNS:postgres -addext basicConstraints=critical,CA:false \
        -addext extendedKeyUsage=serverAuth -keyout secrets/db.key -out secrets/db.pem 2>/dev/null
fi
if [ -e secrets/probe.pem ] && [ -e secrets/probe.key ]; then
    cat secrets/probe.pem secrets/probe.key > secrets/probe-with-key.pem
    echo "made secrets/probe-with-key.pem"
fi
# Daemons refuse private keys that others can read.
for key in secrets/*.key; do chmod 600 "$key"; done
# Daemons run as the owner of the files. If that is root, the files go to an unprivileged user ID.
uid=$(id -u) gid=$(id -g)
if [ "$uid" = 0 ]; then
    uid=65532 gid=65532
    chown -R "$uid:$gid" secrets
fi
printf 'DQKD_UID=%s\nDQKD_GID=%s\n' "$uid" "$gid" > .env
for name in ca.pem crl.pem kme.pem kme.key probe.pem probe.key; do
    [ -e "secrets/$name" ] || echo "missing: secrets/$name (docs/deployment.md says where it comes from)"
done
