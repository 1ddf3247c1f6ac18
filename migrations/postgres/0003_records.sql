-- One sealed record for each batch. docs/data-model.md explains every column.
-- The rows of the older tables are moved into records by the program, which then drops those tables.

-- Whose records a data key seals. Empty: of an older release.
ALTER TABLE data_keys ADD COLUMN kme TEXT NOT NULL DEFAULT '';

-- Half of each page is left free: a changed record stays in its page, so no index changes, and the log gets only the
-- bytes that differ. For that the slots stay in the row where they can (MAIN); the header, which never changes, is kept
-- apart (EXTERNAL, without a try to compress sealed bytes).
CREATE TABLE records (
    batch_id       BYTEA  NOT NULL PRIMARY KEY CHECK (length(batch_id) = 16),
    prefix         BIGINT NOT NULL,
    source_kme     TEXT   NOT NULL,
    master_sae     TEXT   NOT NULL,
    recipient      TEXT,
    key_count      BIGINT NOT NULL CHECK (key_count > 0),
    key_bytes      BIGINT NOT NULL CHECK (key_bytes > 0),
    data_key_id    BYTEA  NOT NULL REFERENCES data_keys (data_key_id),
    expires_at_ms  BIGINT NOT NULL,
    ready_keys     BIGINT NOT NULL,
    ready_until_ms BIGINT,
    erase_at_ms    BIGINT,
    header         BYTEA  NOT NULL,
    state          BYTEA  NOT NULL,
    slots          BYTEA  NOT NULL
) WITH (fillfactor = 50, toast_tuple_target = 4080);
CREATE INDEX records_by_prefix ON records (prefix);
CREATE INDEX records_by_expiry ON records (expires_at_ms);
CREATE INDEX records_by_data_key ON records (data_key_id);
CREATE INDEX records_ready ON records (master_sae, recipient, ready_until_ms) WHERE ready_until_ms IS NOT NULL;
CREATE INDEX records_to_erase ON records (erase_at_ms) WHERE erase_at_ms IS NOT NULL;

ALTER TABLE records ALTER COLUMN header SET STORAGE EXTERNAL, ALTER COLUMN state SET STORAGE MAIN,
    ALTER COLUMN slots SET STORAGE MAIN;

-- Vacuum early and often, by count and not by share, so that the space of old rows is used again and the table stays
-- as large as what is alive.
ALTER TABLE records SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_cost_delay = 0);
