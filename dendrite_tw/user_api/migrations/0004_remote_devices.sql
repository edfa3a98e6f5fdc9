-- Devices and cross-signing keys of users of other servers; when devices of a user changed, apart from other keys.

ALTER TABLE key_changes ADD COLUMN device_position BIGINT NOT NULL DEFAULT 0;
UPDATE key_changes SET device_position = position;

-- "stream_id" is that of the last whole list, "seen" are later updates that were applied to it.
CREATE TABLE remote_lists (
    user_id TEXT PRIMARY KEY,
    server_name TEXT NOT NULL,
    stale BIGINT NOT NULL,
    stream_id BIGINT NOT NULL,
    seen BYTES NOT NULL,
    master_key BYTES,
    self_signing_key BYTES
);
CREATE INDEX remote_lists_stale ON remote_lists (stale, server_name, user_id);

CREATE TABLE remote_devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
