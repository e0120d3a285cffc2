-- Fleet state and intent.
--
-- Times are microseconds since the Unix epoch. A number that is unsigned in the program stands here
-- as the signed number with the same bits. Columns named after a cell, tenant or uid are part of
-- every row that was observed; an agent has a row for each cell that it was seen in. Intent
-- (templates, assignments, labels, intents) has no foreign keys to observed rows, and the other way
-- round. Names are ordered by their bytes, whatever the database's language.

-- How far each partition of the log is folded. Moved by compare-and-swap on the generation.
CREATE TABLE partitions (
    cell       text     COLLATE "C" NOT NULL,
    partition  smallint NOT NULL,
    epoch      bigint   NOT NULL,
    position   bigint   NOT NULL,
    message_id uuid,
    generation bigint   NOT NULL,
    PRIMARY KEY (cell, partition)
) WITH (fillfactor = 20);

-- Which agents there are, and what selectors see of them. Apart from the states, so that a report that
-- says nothing new of this writes none of it, nor any of its indexes.
CREATE TABLE agents (
    tenant     text     COLLATE "C" NOT NULL,
    uid        uuid     NOT NULL,
    cell       text     COLLATE "C" NOT NULL,
    partition  smallint NOT NULL,
    -- The attributes that a selector can ask for, as the text that it compares.
    attributes jsonb    NOT NULL,
    -- The first half of a SHA-256 of them as they were sent, by which they are known to be unchanged.
    digest     uuid     NOT NULL,
    -- Copy of the agent's rows of `labels`.
    labels     jsonb    NOT NULL,
    PRIMARY KEY (tenant, uid, cell)
);

CREATE INDEX agents_by_partition ON agents (cell, partition, tenant, uid);

-- A label hides an attribute with the same key. Agents rarely change in this: they go into the index at
-- once, so that no search has to go through a list of pending ones.
CREATE INDEX agents_by_value ON agents USING gin ((attributes || labels) jsonb_path_ops)
    WITH (fastupdate = off);

CREATE TABLE agent_states (
    tenant       text    COLLATE "C" NOT NULL,
    uid          uuid    NOT NULL,
    cell         text    COLLATE "C" NOT NULL,
    -- JSON. Not jsonb, which cannot hold every text that JSON can.
    state        text    NOT NULL,
    -- What the state says; NULL where the agent has not reported its health.
    healthy      boolean,
    -- How many files the effective config has; NULL where the agent has not reported one.
    config_files integer,
    PRIMARY KEY (tenant, uid, cell)
) WITH (fillfactor = 70);

-- Is written with every report: lz4 takes half the time of what servers use otherwise, where they have it.
DO $$
BEGIN
    EXECUTE 'ALTER TABLE agent_states ALTER COLUMN state SET COMPRESSION lz4';
EXCEPTION
    WHEN feature_not_supported OR syntax_error THEN NULL;
END
$$;

-- The last session of each agent. Apart from the states, so that starts and ends write little.
CREATE TABLE sessions (
    tenant      text     COLLATE "C" NOT NULL,
    uid         uuid     NOT NULL,
    cell        text     COLLATE "C" NOT NULL,
    partition   smallint NOT NULL,
    session_id  uuid     NOT NULL,
    claim       bigint   NOT NULL,
    gateway     text     NOT NULL,
    incarnation uuid     NOT NULL,
    transport   text     NOT NULL,
    remote_addr text     NOT NULL,
    started_at  bigint   NOT NULL,
    ended_at    bigint,
    end_reason  text,
    PRIMARY KEY (tenant, uid, cell)
) WITH (fillfactor = 85);

CREATE INDEX live_sessions ON sessions (cell, partition, incarnation) WHERE ended_at IS NULL;

CREATE TABLE effective_configs (
    tenant       text  COLLATE "C" NOT NULL,
    uid          uuid  NOT NULL,
    cell         text  COLLATE "C" NOT NULL,
    file         text  COLLATE "C" NOT NULL,
    content_type text  NOT NULL,
    body         bytea NOT NULL,
    PRIMARY KEY (tenant, uid, cell, file)
);

-- Entries of the log that could not be folded.
CREATE TABLE quarantine (
    cell       text     COLLATE "C" NOT NULL,
    partition  smallint NOT NULL,
    epoch      bigint   NOT NULL,
    position   bigint   NOT NULL,
    message_id uuid     NOT NULL,
    -- The agent that it is from, as far as that can be told.
    tenant     text     COLLATE "C",
    uid        uuid,
    payload    bytea    NOT NULL,
    reason     text     NOT NULL,
    at         bigint   NOT NULL,
    PRIMARY KEY (cell, partition, epoch, position)
);

-- Id of the cluster: one row.
CREATE TABLE cluster (
    one integer NOT NULL PRIMARY KEY CHECK (one = 1),
    id  uuid    NOT NULL
);

-- Number of the present state of each tenant's intent.
CREATE TABLE intents (
    tenant   text   COLLATE "C" NOT NULL PRIMARY KEY,
    revision bigint NOT NULL
);

-- Revisions of templates. They never change; the ordinal is the order of their creation.
CREATE TABLE templates (
    ordinal    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text   COLLATE "C" NOT NULL,
    name       text   COLLATE "C" NOT NULL,
    version    text   COLLATE "C" NOT NULL,
    id         uuid   NOT NULL,
    digest     bytea  NOT NULL,
    -- The manifest's own bytes, in UTF-8.
    source     bytea  NOT NULL,
    -- JSON.
    compiled   text   NOT NULL,
    created_at bigint NOT NULL,
    UNIQUE (tenant, name, version)
);

CREATE TABLE assignments (
    tenant     text   COLLATE "C" NOT NULL,
    name       text   COLLATE "C" NOT NULL,
    -- JSON.
    spec       text   NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, name)
);

CREATE TABLE labels (
    tenant     text   COLLATE "C" NOT NULL,
    uid        uuid   NOT NULL,
    key        text   COLLATE "C" NOT NULL,
    value      text   COLLATE "C" NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (tenant, uid, key)
);

-- The names by which lists of agent ids call agents.
CREATE INDEX labels_by_name ON labels (tenant, value) WHERE key = 'name';
