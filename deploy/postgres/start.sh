#!/usr/bin/env bash
# Starts Postgres in its container, with TLS. Postgres refuses a private key that others may read, and mounted secrets
# keep their owner from outside. So it gets its own copies, in memory.
set -euo pipefail
tls=/run/postgres-tls
chown postgres:postgres "$tls"
chmod 0700 "$tls"
install -o postgres -g postgres -m 0600 /run/secrets/db_key "$tls/key.pem"
install -o postgres -g postgres -m 0600 /run/secrets/db_cert "$tls/cert.pem"
# synchronous_commit: a key may be handed out only after its row is on disk. Never turn it off.
exec docker-entrypoint.sh postgres \
    -c ssl=on -c ssl_min_protocol_version=TLSv1.3 \
    -c ssl_cert_file="$tls/cert.pem" -c ssl_key_file="$tls/key.pem" \
    -c hba_file=/etc/dqkd-postgres/pg_hba.conf -c password_encryption=scram-sha-256 \
    -c synchronous_commit=on -c fsync=on -c full_page_writes=on \
    -c max_connections=100 -c shared_buffers=512MB -c max_wal_size=4GB
