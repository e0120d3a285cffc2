-- Credentials of agents. Of a key there is only its digest.
CREATE TABLE agent_credentials (
    id         uuid   NOT NULL PRIMARY KEY,
    tenant     text   COLLATE "C" NOT NULL,
    kind       text   NOT NULL,
    digest     bytea  NOT NULL UNIQUE,
    name       text   NOT NULL,
    hint       text   NOT NULL,
    -- The instance_uids that it may be used for, a JSON list; NULL: any.
    uids       text,
    created_at bigint NOT NULL,
    created_by text   NOT NULL,
    expires_at bigint,
    revoked_at bigint,
    -- Number of its last change among those of all.
    revision   bigint NOT NULL UNIQUE
);

CREATE INDEX agent_credentials_by_tenant ON agent_credentials (tenant, id);

-- One row, which every change moves first: so revisions are committed in their order.
CREATE TABLE credential_progress (
    one        boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint  NOT NULL,
    revision   bigint  NOT NULL
);

INSERT INTO credential_progress (generation, revision) VALUES (0, 0);
