-- What has to be done after a change that is on disk: the row goes when it is done, so that a crash
-- in between loses nothing.  subject: a room ID or whatever the kind of duty needs.
CREATE TABLE duties (
    duty_id SERIAL_KEY,
    kind TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    subject TEXT NOT NULL
);

-- Reports outlive their room, and may be of a user or of a room as a whole: user_id and event_id
-- are empty where they do not apply.
DROP TABLE reports;

CREATE TABLE reports (
    report_id SERIAL_KEY,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reporter TEXT NOT NULL,
    reason TEXT,
    score BIGINT,
    received_ts BIGINT NOT NULL
);

CREATE INDEX reports_reporter ON reports (reporter);

CREATE INDEX redactions_room ON redactions (room_nid);
