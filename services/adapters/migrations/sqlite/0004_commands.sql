-- Commands to agents. Like intent they are the tenant's, hold in every cell, and have no foreign keys.
CREATE TABLE commands (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    uid        BLOB    NOT NULL,
    action     TEXT    NOT NULL,
    -- Of a custom message; NULL otherwise.
    capability TEXT,
    type       TEXT,
    data       BLOB,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    -- NULL while it is queued.
    settled_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX commands_queued ON commands (id, tenant) WHERE status = 'queued';
CREATE INDEX commands_settled ON commands (settled_at) WHERE settled_at IS NOT NULL;
CREATE INDEX commands_by_agent ON commands (tenant, uid, id);
