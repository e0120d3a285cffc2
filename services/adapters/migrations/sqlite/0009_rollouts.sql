-- Rollout strategies. Like intent, these tables are the tenant's, hold in every cell, and have no foreign keys.
CREATE TABLE strategies (
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    -- JSON.
    spec       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT;

-- Rollouts. They move by compare-and-swap on the version.
CREATE TABLE rollouts (
    tenant     TEXT    NOT NULL,
    id         BLOB    NOT NULL,
    assignment TEXT    NOT NULL,
    -- Intent revision at which it began: an assignment has one for each at most.
    begun      INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    -- 1 while it is not at its end.
    active     INTEGER NOT NULL,
    -- JSON: all of it, but for the ledger.
    body       TEXT    NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE UNIQUE INDEX rollouts_by_assignment ON rollouts (tenant, assignment, begun);
CREATE INDEX rollouts_active ON rollouts (tenant, id) WHERE active = 1;

-- The ledger: exactly the agents that a rollout has admitted.
CREATE TABLE rollout_agents (
    tenant  TEXT    NOT NULL,
    rollout BLOB    NOT NULL,
    uid     BLOB    NOT NULL,
    stage   INTEGER NOT NULL,
    PRIMARY KEY (tenant, rollout, uid)
) STRICT, WITHOUT ROWID;

-- Where agents stand, by partition; written with the agents.
CREATE TABLE rollout_counts (
    tenant    TEXT    NOT NULL,
    rollout   BLOB    NOT NULL,
    cell      TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    -- JSON.
    counts    TEXT    NOT NULL,
    PRIMARY KEY (tenant, rollout, cell, partition)
) STRICT, WITHOUT ROWID;
