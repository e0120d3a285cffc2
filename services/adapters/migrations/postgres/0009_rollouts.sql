-- Rollout strategies. Like intent, these tables are the tenant's, hold in every cell, and have no foreign keys.
CREATE TABLE strategies (
    tenant     text   COLLATE "C" NOT NULL,
    name       text   COLLATE "C" NOT NULL,
    -- JSON.
    spec       text   NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- Rollouts. They move by compare-and-swap on the version.
CREATE TABLE rollouts (
    tenant     text    COLLATE "C" NOT NULL,
    id         uuid    NOT NULL,
    assignment text    COLLATE "C" NOT NULL,
    -- Intent revision at which it began: an assignment has one for each at most.
    begun      bigint  NOT NULL,
    version    bigint  NOT NULL,
    -- While it is not at its end.
    active     boolean NOT NULL,
    -- JSON: all of it, but for the ledger.
    body       text    NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE UNIQUE INDEX rollouts_by_assignment ON rollouts (tenant, assignment, begun);
CREATE INDEX rollouts_active ON rollouts (tenant, id) WHERE active;

-- The ledger: exactly the agents that a rollout has admitted.
CREATE TABLE rollout_agents (
    tenant  text    COLLATE "C" NOT NULL,
    rollout uuid    NOT NULL,
    uid     uuid    NOT NULL,
    stage   integer NOT NULL,
    PRIMARY KEY (tenant, rollout, uid)
);

-- Where agents stand, by partition; written with the agents.
CREATE TABLE rollout_counts (
    tenant    text    COLLATE "C" NOT NULL,
    rollout   uuid    NOT NULL,
    cell      text    COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    -- JSON.
    counts    text    NOT NULL,
    PRIMARY KEY (tenant, rollout, cell, partition)
);
