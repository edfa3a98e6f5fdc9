-- A row for each mxc:// URI, of this server and (cached) of others. hash is NULL while an upload is
-- awaited, until expires_ts. Files are named by their hash, so several rows may share one.
-- authenticated: only served to those who are known (uploaded since unauthenticated access was frozen).
CREATE TABLE media (
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    hash TEXT,
    size BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    upload_name TEXT,
    uploader TEXT,
    created_ts BIGINT NOT NULL,
    accessed_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    authenticated BIGINT NOT NULL,
    PRIMARY KEY (origin, media_id)
);

CREATE INDEX media_hash ON media (hash);

CREATE INDEX media_uploader ON media (uploader, created_ts);

CREATE INDEX media_pending ON media (expires_ts) WHERE hash IS NULL;

-- Thumbnails lie beside the file that they are of.
CREATE TABLE thumbnails (
    hash TEXT NOT NULL,
    name TEXT NOT NULL,
    size BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (hash, name)
);
