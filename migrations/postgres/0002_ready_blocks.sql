-- Keys made ahead of demand that no daemon has taken yet: one row for each block of keys of one batch.
-- Deleting the row is the lease: what it listed is in one daemon's memory from then on, and nowhere else.
-- sealed has the keys as keys.sealed has them, one after the other, so that a lease reads one row. NULL: it reads keys.

CREATE TABLE ready_blocks (
    batch_id        BYTEA  NOT NULL PRIMARY KEY REFERENCES batches (batch_id),
    master_sae      TEXT   NOT NULL,
    recipient       TEXT   NOT NULL,
    key_ids         BYTEA  NOT NULL CHECK (length(key_ids) > 0 AND length(key_ids) % 16 = 0),
    grade           TEXT   NOT NULL,
    usable_until_ms BIGINT NOT NULL,
    sealed          BYTEA
);
CREATE INDEX ready_blocks_by_pair ON ready_blocks (master_sae, recipient, usable_until_ms);
-- Of a sum, so that only the sweep uses it: a lease would read the blocks of all pairs by it.
CREATE INDEX ready_blocks_by_end ON ready_blocks ((usable_until_ms + 0));
ALTER TABLE ready_blocks ALTER COLUMN key_ids SET STORAGE EXTERNAL;
ALTER TABLE ready_blocks ALTER COLUMN sealed SET STORAGE EXTERNAL;
ALTER TABLE ready_blocks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
