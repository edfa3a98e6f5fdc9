-- A room may have very many members, and few of them of this server.
CREATE INDEX memberships_local ON memberships (room_nid) WHERE local = 1;
