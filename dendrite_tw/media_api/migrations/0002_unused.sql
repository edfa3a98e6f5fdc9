-- Files whose last row was deleted, until they are deleted too.
CREATE TABLE unused_files (
    hash TEXT PRIMARY KEY
);

-- Media of other servers by when it was last asked for.
CREATE INDEX media_unused ON media (accessed_ts) WHERE uploader IS NULL;
