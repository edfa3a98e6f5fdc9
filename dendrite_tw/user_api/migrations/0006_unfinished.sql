-- Accounts of which something is left to do are few among many, and looked for again and again.

DROP INDEX accounts_unfinished;
CREATE INDEX accounts_must_leave ON accounts (user_id) WHERE must_leave = 1;
CREATE INDEX accounts_must_show ON accounts (user_id) WHERE must_show = 1;
