-- Lists of components that agents can be configured with, each once for all agents of a tenant and type
-- that report its hash.
CREATE TABLE components (
    tenant     TEXT    NOT NULL,
    agent_type TEXT    NOT NULL,
    -- The agents' own, in hexadecimal.
    hash       TEXT    NOT NULL,
    -- JSON.
    list       TEXT    NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_type, hash)
) STRICT;

CREATE INDEX components_by_age ON components (tenant, changed_at);

-- The revision of a tenant's intent at which another try of a failed config was last asked for.
CREATE TABLE retries (
    tenant   TEXT    NOT NULL,
    uid      BLOB    NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (tenant, uid)
) STRICT, WITHOUT ROWID;

CREATE INDEX retries_by_revision ON retries (tenant, revision);
