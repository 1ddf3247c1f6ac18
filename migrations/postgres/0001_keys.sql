-- Keys at rest. docs/data-model.md explains every column and state.
-- Times are milliseconds since the Unix epoch; IDs are the 16 bytes of a UUID; parties and lists are text.

CREATE TABLE data_keys (
    data_key_id   BYTEA  NOT NULL PRIMARY KEY CHECK (length(data_key_id) = 16),
    kek_id        TEXT   NOT NULL,
    wrapped       BYTEA  NOT NULL,
    created_at_ms BIGINT NOT NULL
);

CREATE TABLE batches (
    batch_id       BYTEA  NOT NULL PRIMARY KEY CHECK (length(batch_id) = 16),
    source_kme     TEXT   NOT NULL,
    master_sae     TEXT   NOT NULL,
    recipients     TEXT   NOT NULL,
    entitled       TEXT   NOT NULL,
    key_bytes      BIGINT NOT NULL CHECK (key_bytes > 0),
    key_ids        BYTEA  NOT NULL CHECK (length(key_ids) > 0 AND length(key_ids) % 16 = 0),
    data_key_id    BYTEA  NOT NULL REFERENCES data_keys (data_key_id),
    content_digest BYTEA  NOT NULL CHECK (length(content_digest) = 32),
    state          TEXT   NOT NULL CHECK (state IN ('stored', 'voided')),
    created_at_ms  BIGINT NOT NULL,
    expires_at_ms  BIGINT NOT NULL
);
CREATE INDEX batches_by_expiry ON batches (expires_at_ms);
CREATE INDEX batches_by_data_key ON batches (data_key_id);

-- sealed is NULL once the key was voided: the row stays so that the void can be told from a retrieval.
CREATE TABLE keys (
    key_id      BYTEA NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
    batch_id    BYTEA NOT NULL REFERENCES batches (batch_id),
    sealed      BYTEA,
    erase_at_ms BIGINT
);
CREATE INDEX keys_by_batch ON keys (batch_id);
CREATE INDEX keys_to_erase ON keys (erase_at_ms) WHERE erase_at_ms IS NOT NULL;

CREATE TABLE retrievals (
    key_id          BYTEA  NOT NULL REFERENCES keys (key_id) ON DELETE CASCADE,
    party           TEXT   NOT NULL,
    retrieved_by    TEXT   NOT NULL,
    retrieved_at_ms BIGINT NOT NULL,
    PRIMARY KEY (key_id, party)
);

CREATE TABLE tombstones (
    batch_id      BYTEA  NOT NULL CHECK (length(batch_id) = 16),
    source_kme    TEXT   NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    PRIMARY KEY (batch_id, source_kme)
);
CREATE INDEX tombstones_by_expiry ON tombstones (expires_at_ms);

-- What each writer committed last, by a random token: so that a writer whose connection broke during a COMMIT can
-- find out whether it took place. Postgres only; SQLite is in the same process.
CREATE TABLE commit_marks (
    writer       TEXT   NOT NULL PRIMARY KEY,
    token        BYTEA  NOT NULL,
    marked_at_ms BIGINT NOT NULL
) WITH (fillfactor = 10);

-- Random bytes do not compress: do not try.
ALTER TABLE batches ALTER COLUMN key_ids SET STORAGE EXTERNAL;
ALTER TABLE keys ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- Rows are inserted and deleted, hardly ever updated: vacuum early and often, by count and not by share, so that
-- the space of deleted keys is used again and the tables stay as large as what is alive (docs/data-model.md).
ALTER TABLE keys SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);
ALTER TABLE batches SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE retrievals SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE commit_marks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
