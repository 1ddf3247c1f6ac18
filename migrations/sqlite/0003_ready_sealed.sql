-- The block's keys beside their IDs, sealed as in keys.sealed and one after the other: a lease reads one row instead of
-- one for each key. NULL: the keys are to be read from keys.

ALTER TABLE ready_blocks ADD COLUMN sealed BLOB;
