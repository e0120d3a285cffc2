-- Credentials of agents. Of a key there is only its digest.
CREATE TABLE agent_credentials (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    digest     BLOB    NOT NULL UNIQUE,
    name       TEXT    NOT NULL,
    hint       TEXT    NOT NULL,
    -- The instance_uids that it may be used for, a JSON list; NULL: any.
    uids       TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    -- Number of its last change among those of all.
    revision   INTEGER NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;

CREATE INDEX agent_credentials_by_tenant ON agent_credentials (tenant, id);

-- One row, which every change moves first: so revisions are committed in their order.
CREATE TABLE credential_progress (
    one        INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    generation INTEGER NOT NULL,
    revision   INTEGER NOT NULL
) STRICT;

INSERT INTO credential_progress (generation, revision) VALUES (0, 0);
