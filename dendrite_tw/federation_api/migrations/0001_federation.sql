-- The signing keys of other servers. valid_until_ts: the last moment whose signatures the key proves; for a key
-- that its server no longer signs with (expired), the moment when it ceased to. told_until_ts: how long the document
-- counts that last named the key; a document that counts longer replaces what an older one said.
CREATE TABLE server_keys (
    server_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    verify_key BYTES NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    expired BIGINT NOT NULL,
    told_until_ts BIGINT NOT NULL,
    fetched_ts BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
);

CREATE INDEX server_keys_fetched ON server_keys (fetched_ts);

-- The last document that each server published of its keys, as it signed it: what a notary hands on.
CREATE TABLE server_key_documents (
    server_name TEXT NOT NULL PRIMARY KEY,
    document BYTES NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    fetched_ts BIGINT NOT NULL
);

CREATE INDEX server_key_documents_fetched ON server_key_documents (fetched_ts);

-- Servers that could not be reached: how often in a row, and when the next attempt may be made. given_up: none is made
-- until the server is heard of.
CREATE TABLE unreachable_servers (
    server_name TEXT NOT NULL PRIMARY KEY,
    failures BIGINT NOT NULL,
    retry_ts BIGINT NOT NULL,
    given_up BIGINT NOT NULL,
    failed_ts BIGINT NOT NULL
);

CREATE INDEX unreachable_servers_failed ON unreachable_servers (failed_ts);
