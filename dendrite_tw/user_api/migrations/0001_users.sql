-- Accounts, sessions, profiles, account data, push rules, receipts and unread counts.

CREATE TABLE accounts (
    user_id TEXT PRIMARY KEY,
    account_type BIGINT NOT NULL,
    password_hash TEXT,
    created_ts BIGINT NOT NULL,
    appservice_id TEXT,
    deactivated BIGINT NOT NULL DEFAULT 0,
    erased BIGINT NOT NULL DEFAULT 0,
    locked BIGINT NOT NULL DEFAULT 0,
    suspended BIGINT NOT NULL DEFAULT 0,
    must_leave BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE devices (
    session_id SERIAL_KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_ts BIGINT NOT NULL,
    last_seen_ts BIGINT NOT NULL,
    last_seen_ip TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    UNIQUE (user_id, device_id)
);

-- An access token with the refresh token that was given with it.  "parent_id" is the pair that
-- this one replaces, until a token of this one is used.
CREATE TABLE token_pairs (
    pair_id SERIAL_KEY,
    session_id BIGINT NOT NULL,
    access_hash BYTES NOT NULL UNIQUE,
    refresh_hash BYTES UNIQUE,
    expires_ts BIGINT,
    parent_id BIGINT
);
CREATE INDEX token_pairs_session ON token_pairs (session_id);
CREATE INDEX token_pairs_parent ON token_pairs (parent_id);

CREATE TABLE short_tokens (
    token_hash BYTES PRIMARY KEY,
    purpose TEXT NOT NULL,
    user_id TEXT NOT NULL,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX short_tokens_expiry ON short_tokens (expires_ts);
CREATE INDEX short_tokens_user ON short_tokens (user_id);

CREATE TABLE registration_tokens (
    token TEXT PRIMARY KEY,
    uses_allowed BIGINT,
    completed BIGINT NOT NULL,
    expiry_time BIGINT
);

CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    value BYTES NOT NULL,
    PRIMARY KEY (user_id, field)
);

CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    type TEXT NOT NULL,
    content BYTES NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
);
CREATE INDEX account_data_position ON account_data (user_id, position);

CREATE TABLE pushers (
    user_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    session_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    details BYTES NOT NULL,
    PRIMARY KEY (user_id, app_id, pushkey)
);
CREATE INDEX pushers_key ON pushers (app_id, pushkey);

CREATE TABLE receipts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    receipt_type TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_position BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
);
CREATE INDEX receipts_position ON receipts (room_id, position);

-- How far a local user has read a thread of a room ("" is all threads).
CREATE TABLE read_marks (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    event_position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, thread_id)
);

-- Events that notify whoever has the default push rules.
CREATE TABLE unread_log (
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    ts BIGINT NOT NULL,
    highlight BIGINT NOT NULL,
    PRIMARY KEY (room_id, position)
);
CREATE INDEX unread_log_age ON unread_log (ts);

-- Events whose outcome for one user is not that of the log.
CREATE TABLE unread_personal (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    ts BIGINT NOT NULL,
    notify BIGINT NOT NULL,
    highlight BIGINT NOT NULL,
    logged BIGINT NOT NULL,
    actions BYTES NOT NULL,
    PRIMARY KEY (user_id, room_id, position)
);
CREATE INDEX unread_personal_age ON unread_personal (ts);
CREATE INDEX unread_personal_event ON unread_personal (room_id, position);

-- The part of a room's log that counts for a user whose push rules were changed; room "" is all rooms.
CREATE TABLE unread_spans (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    after_position BIGINT NOT NULL,
    upto_position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id)
);

CREATE TABLE consumer_positions (
    consumer TEXT PRIMARY KEY,
    position BIGINT NOT NULL
);
