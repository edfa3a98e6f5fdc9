-- A filter's ID is a hash of its content, so that the same filter uploaded again is the same row.
CREATE TABLE sync_filters (
    user_id TEXT NOT NULL,
    filter_id TEXT NOT NULL,
    content BYTES NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);
