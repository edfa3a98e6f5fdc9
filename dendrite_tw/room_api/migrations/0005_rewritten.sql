-- The newest position at which the state of the room was replaced as a whole: who knows the room from before
-- that must look at all of it again.
ALTER TABLE rooms ADD COLUMN rewritten BIGINT NOT NULL DEFAULT 0;
