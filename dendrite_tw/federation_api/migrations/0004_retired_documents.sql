-- The last document with a key that its server names no longer: what a notary hands on of it.
CREATE TABLE retired_key_documents (
    server_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    document BYTES NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    fetched_ts BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
);

CREATE INDEX retired_key_documents_fetched ON retired_key_documents (fetched_ts);
