-- Users as others find them: words (UTF-8, folded) of the name and of the ID, whole and in order of bytes.
CREATE TABLE directory_users (
    user_nid BIGINT PRIMARY KEY,
    display_name TEXT NOT NULL,
    avatar_url TEXT NOT NULL
);

CREATE TABLE directory_words (
    word BYTES NOT NULL,
    user_nid BIGINT NOT NULL,
    PRIMARY KEY (word, user_nid)
);

CREATE INDEX directory_words_user ON directory_words (user_nid);

-- Rooms whose members everybody may know of.  reason: join (anybody may join) or read (anybody may read).
CREATE TABLE open_rooms (
    room_nid BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (room_nid, reason)
);
