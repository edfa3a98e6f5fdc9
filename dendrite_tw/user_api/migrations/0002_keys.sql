-- Keys of devices, cross-signing, messages between devices, key backup.

CREATE TABLE device_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

CREATE TABLE one_time_keys (
    id SERIAL_KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    digest BYTES NOT NULL,
    content BYTES NOT NULL
);
CREATE UNIQUE INDEX one_time_keys_name ON one_time_keys (user_id, device_id, algorithm, key_id);
CREATE INDEX one_time_keys_order ON one_time_keys (user_id, device_id, algorithm, id);

CREATE TABLE claimed_one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    digest BYTES NOT NULL,
    claimed_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX claimed_one_time_keys_ts ON claimed_one_time_keys (claimed_ts);

CREATE TABLE fallback_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    digest BYTES NOT NULL,
    content BYTES NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
);

CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    usage TEXT NOT NULL,
    public_key TEXT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, usage)
);

CREATE TABLE user_signatures (
    signer TEXT NOT NULL,
    target TEXT NOT NULL,
    target_key TEXT NOT NULL,
    signing_key TEXT NOT NULL,
    signature TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (signer, target)
);
CREATE INDEX user_signatures_position ON user_signatures (signer, position);

CREATE TABLE key_changes (
    user_id TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
CREATE INDEX key_changes_position ON key_changes (position);

CREATE TABLE to_device (
    position BIGINT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    event BYTES NOT NULL
);
CREATE INDEX to_device_inbox ON to_device (user_id, device_id, position);

CREATE TABLE to_device_transactions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    sent_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, event_type, txn_id)
);
CREATE INDEX to_device_transactions_ts ON to_device_transactions (sent_ts);

CREATE TABLE backup_versions (
    id SERIAL_KEY,
    user_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data BYTES NOT NULL,
    etag BIGINT NOT NULL,
    key_count BIGINT NOT NULL,
    deleted BIGINT NOT NULL
);
CREATE INDEX backup_versions_user ON backup_versions (user_id, deleted, id);

CREATE TABLE backup_keys (
    backup_id BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    is_verified BIGINT NOT NULL,
    session_data BYTES NOT NULL,
    PRIMARY KEY (backup_id, room_id, session_id)
);
