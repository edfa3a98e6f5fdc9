-- What other servers are to be told, a queue for each. A batch is what goes into one transaction: its number names the
-- transaction too, grows, and holds in its upper bits the time (milliseconds) when the batch was begun. A row goes
-- when the transaction was answered.
CREATE TABLE destination_events (
    destination TEXT NOT NULL,
    batch BIGINT NOT NULL,
    number BIGINT NOT NULL,
    position BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (destination, batch, number)
);

-- Of a server that is far behind, the newest event that it was to be told of each room.
CREATE TABLE destination_rooms (
    destination TEXT NOT NULL,
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (destination, room_id)
);

-- Ephemeral messages, each once however many servers are to have it.
CREATE TABLE outgoing_edus (
    edu_id BIGINT PRIMARY KEY,
    edu_type TEXT NOT NULL,
    content BYTES NOT NULL
);

-- collapse_key: of those with the same one the newest is enough, for a server that did not have the others; empty:
-- each counts.
CREATE TABLE destination_edus (
    destination TEXT NOT NULL,
    batch BIGINT NOT NULL,
    number BIGINT NOT NULL,
    edu_id BIGINT NOT NULL,
    collapse_key TEXT NOT NULL,
    PRIMARY KEY (destination, batch, number)
);

CREATE INDEX destination_edus_edu ON destination_edus (edu_id);
CREATE INDEX destination_edus_key ON destination_edus (destination, collapse_key);

-- How far each consumer has stored what follows from its stream.
CREATE TABLE federation_positions (
    consumer TEXT PRIMARY KEY,
    position BIGINT NOT NULL
);

-- What was wrong with the last attempt, in words.
ALTER TABLE unreachable_servers ADD COLUMN error TEXT NOT NULL DEFAULT '';
