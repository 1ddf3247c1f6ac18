-- Keys at rest. docs/data-model.md explains every column and state.
-- Times are milliseconds since the Unix epoch; IDs are the 16 bytes of a UUID; parties and lists are text.
-- Long rows have a rowid, their long columns last: in a tree of whole rows every comparison would read all of a long row.

CREATE TABLE data_keys (
    data_key_id   BLOB    NOT NULL PRIMARY KEY CHECK (length(data_key_id) = 16),
    kek_id        TEXT    NOT NULL,
    wrapped       BLOB    NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE batches (
    batch_id       BLOB    NOT NULL PRIMARY KEY CHECK (length(batch_id) = 16),
    source_kme     TEXT    NOT NULL,
    master_sae     TEXT    NOT NULL,
    recipients     TEXT    NOT NULL,
    entitled       TEXT    NOT NULL,
    key_bytes      INTEGER NOT NULL CHECK (key_bytes > 0),
    data_key_id    BLOB    NOT NULL REFERENCES data_keys (data_key_id),
    content_digest BLOB    NOT NULL CHECK (length(content_digest) = 32),
    state          TEXT    NOT NULL CHECK (state IN ('stored', 'voided')),
    created_at_ms  INTEGER NOT NULL,
    expires_at_ms  INTEGER NOT NULL,
    key_ids        BLOB    NOT NULL CHECK (length(key_ids) > 0 AND length(key_ids) % 16 = 0)
) STRICT;
CREATE INDEX batches_by_expiry ON batches (expires_at_ms);
CREATE INDEX batches_by_data_key ON batches (data_key_id);

-- sealed is NULL once the key was voided: the row stays so that the void can be told from a retrieval.
CREATE TABLE keys (
    key_id      BLOB    NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
    batch_id    BLOB    NOT NULL REFERENCES batches (batch_id),
    sealed      BLOB,
    erase_at_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_batch ON keys (batch_id);
CREATE INDEX keys_to_erase ON keys (erase_at_ms) WHERE erase_at_ms IS NOT NULL;

CREATE TABLE retrievals (
    key_id          BLOB    NOT NULL REFERENCES keys (key_id) ON DELETE CASCADE,
    party           TEXT    NOT NULL,
    retrieved_by    TEXT    NOT NULL,
    retrieved_at_ms INTEGER NOT NULL,
    PRIMARY KEY (key_id, party)
) STRICT, WITHOUT ROWID;

CREATE TABLE tombstones (
    batch_id      BLOB    NOT NULL CHECK (length(batch_id) = 16),
    source_kme    TEXT    NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (batch_id, source_kme)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones_by_expiry ON tombstones (expires_at_ms);
