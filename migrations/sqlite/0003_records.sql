-- One sealed record for each batch. docs/data-model.md explains every column.
-- The rows of the older tables are moved into records by the program, which then drops those tables.
-- Long columns come last, so that a retrieval changes as few pages as possible.

-- Whose records a data key seals. Empty: of an older release.
ALTER TABLE data_keys ADD COLUMN kme TEXT NOT NULL DEFAULT '';

CREATE TABLE records (
    batch_id       BLOB    NOT NULL PRIMARY KEY CHECK (length(batch_id) = 16),
    prefix         INTEGER NOT NULL,
    source_kme     TEXT    NOT NULL,
    master_sae     TEXT    NOT NULL,
    recipient      TEXT,
    key_count      INTEGER NOT NULL CHECK (key_count > 0),
    key_bytes      INTEGER NOT NULL CHECK (key_bytes > 0),
    data_key_id    BLOB    NOT NULL REFERENCES data_keys (data_key_id),
    expires_at_ms  INTEGER NOT NULL,
    ready_keys     INTEGER NOT NULL,
    ready_until_ms INTEGER,
    erase_at_ms    INTEGER,
    header         BLOB    NOT NULL,
    state          BLOB    NOT NULL,
    slots          BLOB    NOT NULL
) STRICT;
CREATE INDEX records_by_prefix ON records (prefix);
CREATE INDEX records_by_expiry ON records (expires_at_ms);
CREATE INDEX records_by_data_key ON records (data_key_id);
CREATE INDEX records_ready ON records (master_sae, recipient, ready_until_ms) WHERE ready_until_ms IS NOT NULL;
CREATE INDEX records_to_erase ON records (erase_at_ms) WHERE erase_at_ms IS NOT NULL;
