-- Rooms that other servers take part in.
--
-- standing: 0 resident with full state, 1 resident with members still missing (partial_rooms tells more),
-- 2 not resident: only invites, knocks and departures of our users are known.
-- tape_nid: the newest stored snapshot, on which the next one stands; snapshot_nid is the current state.
ALTER TABLE rooms ADD COLUMN standing BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN tape_nid BIGINT NOT NULL DEFAULT 0;
UPDATE rooms SET tape_nid = snapshot_nid;

-- current_nid: the room's current state once this live event was taken; for history fetched later,
-- the state after it.  gap: 1 where events before this one are missing here.
ALTER TABLE events ADD COLUMN current_nid BIGINT NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN gap BIGINT NOT NULL DEFAULT 0;
UPDATE events SET current_nid = COALESCE(
    (SELECT n.snapshot_nid FROM events n WHERE n.room_nid = events.room_nid AND n.position > events.position
     AND n.status = 0 ORDER BY n.position LIMIT 1),
    (SELECT r.snapshot_nid FROM rooms r WHERE r.room_nid = events.room_nid),
    0) WHERE position > 0;

-- position: since when the membership is current.  It may have become so without an event of its own there,
-- by an invite from elsewhere or where branches of the room met.
ALTER TABLE memberships ADD COLUMN position BIGINT NOT NULL DEFAULT 0;
UPDATE memberships SET position = COALESCE(
    (SELECT e.position FROM events e WHERE e.event_nid = memberships.event_nid), 0);

-- The events that a state event stands on, near and far, as a roaring bitmap of their numbers.
-- A row that is missing is made when it is needed.
CREATE TABLE auth_chains (
    event_nid BIGINT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    chain BYTES NOT NULL
);

CREATE INDEX auth_chains_room ON auth_chains (room_nid);

-- The event event_nid refers to prev_id, which is not here as part of the timeline.
CREATE TABLE backward_edges (
    prev_id TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    PRIMARY KEY (prev_id, event_nid)
);

CREATE INDEX backward_edges_room ON backward_edges (room_nid);
CREATE INDEX backward_edges_event ON backward_edges (event_nid);

-- Invites and knocks of our users to rooms that this server is not in.  stripped: a JSON list of what
-- the room shows of itself; via: the server that can be asked to go on.
CREATE TABLE invites (
    user_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    stripped BYTES NOT NULL,
    via TEXT NOT NULL,
    PRIMARY KEY (user_nid, room_nid)
);

CREATE INDEX invites_room ON invites (room_nid);

-- Rooms of standing 1: the join by which this server came in, who helped, and a JSON list of the servers
-- in the room as they were told then.
CREATE TABLE partial_rooms (
    room_nid BIGINT PRIMARY KEY,
    join_nid BIGINT NOT NULL,
    resident TEXT NOT NULL,
    servers BYTES NOT NULL
);
