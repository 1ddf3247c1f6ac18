#!/usr/bin/env bash
# Runs once, in an empty database. The role of the KMEs owns its database and may do nothing else.
set -euo pipefail
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set password `cat /run/secrets/db_password`
CREATE ROLE dqkd LOGIN PASSWORD :'password';
CREATE DATABASE dqkd OWNER dqkd;
REVOKE ALL ON DATABASE dqkd FROM PUBLIC;
SQL
