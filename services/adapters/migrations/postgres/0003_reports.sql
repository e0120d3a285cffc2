-- Lists of components that agents can be configured with, each once for all agents of a tenant and type
-- that report its hash.
CREATE TABLE components (
    tenant     text   COLLATE "C" NOT NULL,
    -- UTF-8: what agents say may hold what text here cannot.
    agent_type bytea  NOT NULL,
    -- The agents' own, in hexadecimal.
    hash       text   COLLATE "C" NOT NULL,
    -- JSON. Not jsonb, which cannot hold every text that JSON can.
    list       text   NOT NULL,
    changed_at bigint NOT NULL,
    PRIMARY KEY (tenant, agent_type, hash)
);

CREATE INDEX components_by_age ON components (tenant, changed_at);

-- The revision of a tenant's intent at which another try of a failed config was last asked for.
CREATE TABLE retries (
    tenant   text   COLLATE "C" NOT NULL,
    uid      uuid   NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (tenant, uid)
);

CREATE INDEX retries_by_revision ON retries (tenant, revision);
