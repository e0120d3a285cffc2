-- Commands to agents. Like intent they are the tenant's, hold in every cell, and have no foreign keys.
CREATE TABLE commands (
    id         uuid   NOT NULL PRIMARY KEY,
    tenant     text   COLLATE "C" NOT NULL,
    uid        uuid   NOT NULL,
    action     text   NOT NULL,
    -- Of a custom message; NULL otherwise.
    capability text,
    type       text,
    data       bytea,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    actor      text   NOT NULL,
    status     text   NOT NULL,
    reason     text   NOT NULL,
    -- NULL while it is queued.
    settled_at bigint
);

CREATE INDEX commands_queued ON commands (id, tenant) WHERE status = 'queued';
CREATE INDEX commands_settled ON commands (settled_at) WHERE settled_at IS NOT NULL;
CREATE INDEX commands_by_agent ON commands (tenant, uid, id);
