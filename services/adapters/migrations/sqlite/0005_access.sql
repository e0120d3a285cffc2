-- Who may do what: tenants, API tokens, the audit log.

CREATE TABLE tenants (
    tenant     TEXT    NOT NULL PRIMARY KEY,
    -- JSON.
    quotas     TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- NULL while it is there. A removed tenant's name is not given again.
    removed_at INTEGER
) STRICT, WITHOUT ROWID;

INSERT INTO tenants (tenant, quotas, revision, created_at, updated_at) VALUES ('default', '{}', 1, 0, 0);

CREATE TABLE tokens (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    account    TEXT    NOT NULL,
    role       TEXT    NOT NULL,
    -- Of the token's text, which is stored nowhere.
    digest     BLOB    NOT NULL UNIQUE,
    created_by TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_by_tenant ON tokens (tenant, id);

-- One chain of records a tenant: each has the digest of the one before.
CREATE TABLE audit (
    tenant       TEXT    NOT NULL,
    number       INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    actor        TEXT    NOT NULL,
    role         TEXT    NOT NULL,
    remote       TEXT    NOT NULL,
    operation    TEXT    NOT NULL,
    target       TEXT    NOT NULL,
    -- JSON, or empty.
    state_before TEXT    NOT NULL,
    state_after  TEXT    NOT NULL,
    outcome      TEXT    NOT NULL,
    previous     BLOB    NOT NULL,
    digest       BLOB    NOT NULL,
    PRIMARY KEY (tenant, number)
) STRICT, WITHOUT ROWID;

-- The last record of each chain.
CREATE TABLE audit_heads (
    tenant TEXT    NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL,
    digest BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is never changed');
END;

CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is never changed');
END;
