-- When a user alone was told that their user-signing key changed, which nobody else sees.

ALTER TABLE cross_signing_keys ADD COLUMN told_position BIGINT NOT NULL DEFAULT 0;
