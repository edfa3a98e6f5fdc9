-- Integers inside, strings at the rim: rooms, names (event types, users) and state slots
-- (a type with a state key) are numbered; events and state refer to the numbers.

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    next BIGINT NOT NULL
);

CREATE TABLE names (
    name_nid SERIAL_KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE state_slots (
    slot_nid SERIAL_KEY,
    type TEXT NOT NULL,
    state_key TEXT NOT NULL,
    UNIQUE (type, state_key)
);

-- depth, extremities (a JSON list of event IDs) and snapshot_nid are those of the newest event.
CREATE TABLE rooms (
    room_nid SERIAL_KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    depth BIGINT NOT NULL,
    extremities BYTES NOT NULL,
    snapshot_nid BIGINT NOT NULL
);

-- position: the place in the live stream (an outbox id), 0 for an event that was never live,
-- negative for history that was fetched later.  snapshot_nid: the state before the event.
-- status: 0 accepted, 1 soft-failed, 2 rejected.
CREATE TABLE events (
    event_nid BIGINT PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    room_nid BIGINT NOT NULL,
    type_nid BIGINT NOT NULL,
    slot_nid BIGINT,
    sender_nid BIGINT NOT NULL,
    depth BIGINT NOT NULL,
    position BIGINT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    snapshot_nid BIGINT NOT NULL,
    status BIGINT NOT NULL,
    replaces_nid BIGINT,
    redacted_by_nid BIGINT,
    txn_device TEXT,
    txn_id TEXT,
    pdu BYTES NOT NULL
);

CREATE INDEX events_stream ON events (room_nid, position);
CREATE INDEX events_history ON events (room_nid, depth, position);
CREATE INDEX events_time ON events (room_nid, origin_server_ts);
CREATE INDEX events_state ON events (room_nid, slot_nid) WHERE slot_nid IS NOT NULL;
CREATE INDEX events_snapshot ON events (snapshot_nid);
CREATE UNIQUE INDEX events_transaction ON events (sender_nid, txn_device, txn_id, room_nid, type_nid)
    WHERE txn_id IS NOT NULL;

-- A state is the state of its base with the delta laid over it; base_nid 0 is the empty state.
-- step places it in the chain of bases, which is never longer than the digits of a step.
CREATE TABLE state_snapshots (
    snapshot_nid BIGINT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    step BIGINT NOT NULL,
    base_nid BIGINT NOT NULL,
    delta BYTES NOT NULL
);

CREATE INDEX state_snapshots_base ON state_snapshots (base_nid);
CREATE INDEX state_snapshots_room ON state_snapshots (room_nid);

CREATE TABLE memberships (
    user_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    membership TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    local BIGINT NOT NULL,
    forgotten BIGINT NOT NULL,
    PRIMARY KEY (user_nid, room_nid)
);

CREATE INDEX memberships_room ON memberships (room_nid, membership);

CREATE TABLE relations (
    parent_id TEXT NOT NULL,
    child_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    rel_type TEXT NOT NULL,
    PRIMARY KEY (parent_id, child_nid)
);

CREATE INDEX relations_threads ON relations (room_nid, rel_type, parent_id);

-- Redactions that came before their targets, or whose targets are known: the pair is applied when both are.
CREATE TABLE redactions (
    redacts_id TEXT NOT NULL,
    redaction_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    applied BIGINT NOT NULL,
    PRIMARY KEY (redacts_id, redaction_nid)
);

CREATE TABLE aliases (
    alias TEXT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    creator TEXT NOT NULL,
    created_ts BIGINT NOT NULL
);

CREATE INDEX aliases_room ON aliases (room_nid);

CREATE TABLE published (
    room_nid BIGINT PRIMARY KEY
);

CREATE TABLE reports (
    report_id SERIAL_KEY,
    room_nid BIGINT NOT NULL,
    event_id TEXT,
    reporter TEXT NOT NULL,
    reason TEXT NOT NULL,
    score BIGINT,
    received_ts BIGINT NOT NULL
);
