-- Who may do what: tenants, API tokens, the audit log.

CREATE TABLE tenants (
    tenant     text   COLLATE "C" NOT NULL PRIMARY KEY,
    -- JSON.
    quotas     text   NOT NULL,
    revision   bigint NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    -- NULL while it is there. A removed tenant's name is not given again.
    removed_at bigint
);

INSERT INTO tenants (tenant, quotas, revision, created_at, updated_at) VALUES ('default', '{}', 1, 0, 0);

CREATE TABLE tokens (
    id         uuid   NOT NULL PRIMARY KEY,
    tenant     text   COLLATE "C" NOT NULL,
    account    text   COLLATE "C" NOT NULL,
    role       text   NOT NULL,
    -- Of the token's text, which is stored nowhere.
    digest     bytea  NOT NULL UNIQUE,
    created_by text   NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    revoked_at bigint
);

CREATE INDEX tokens_by_tenant ON tokens (tenant, id);

-- One chain of records a tenant: each has the digest of the one before.
CREATE TABLE audit (
    tenant       text   COLLATE "C" NOT NULL,
    number       bigint NOT NULL,
    at           bigint NOT NULL,
    actor        text   NOT NULL,
    role         text   NOT NULL,
    remote       text   NOT NULL,
    operation    text   NOT NULL,
    target       text   NOT NULL,
    -- JSON, or empty.
    state_before text   NOT NULL,
    state_after  text   NOT NULL,
    outcome      text   NOT NULL,
    previous     bytea  NOT NULL,
    digest       bytea  NOT NULL,
    PRIMARY KEY (tenant, number)
);

-- The last record of each chain.
CREATE TABLE audit_heads (
    tenant text   COLLATE "C" NOT NULL PRIMARY KEY,
    number bigint NOT NULL,
    digest bytea  NOT NULL
);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is never changed' USING ERRCODE = 'raise_exception';
END
$$;

CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
