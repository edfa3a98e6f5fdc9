-- What processes of one component have to know of each other.

-- Proofs that users give in several steps, which need not all come to the same process.
CREATE TABLE uia_sessions (
    id TEXT PRIMARY KEY,
    expires_ts BIGINT NOT NULL,
    content BYTES NOT NULL
);
CREATE INDEX uia_sessions_expiry ON uia_sessions (expires_ts);

-- Users whose push rules are others than those by which events are judged still: "content" are the old ones.
CREATE TABLE push_rule_changes (
    user_id TEXT PRIMARY KEY,
    content BYTES NOT NULL
);

-- Lists of devices that a process asks other servers for, and what was told of them meanwhile.
CREATE TABLE remote_fetches (
    fetch_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    newest BIGINT NOT NULL,
    ended BIGINT NOT NULL,
    begun_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, fetch_id)
);
CREATE INDEX remote_fetches_age ON remote_fetches (begun_ts);

-- Whether the profile has changed since it was last shown in the user's rooms.
ALTER TABLE accounts ADD COLUMN must_show BIGINT NOT NULL DEFAULT 0;
CREATE INDEX accounts_unfinished ON accounts (must_leave, must_show);
