-- Fleet state and intent.
--
-- Times are microseconds since the Unix epoch. A number that is unsigned in the program stands here
-- as the signed number with the same bits. Columns named after a cell, tenant or uid are part of
-- every row that was observed; an agent has a row for each cell that it was seen in. Intent (templates, assignments, labels, intents) has no foreign keys
-- to observed rows, and the other way round.

-- How far each partition of the log is folded. Moved by compare-and-swap on the generation.
CREATE TABLE partitions (
    cell       TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    message_id BLOB,
    generation INTEGER NOT NULL,
    PRIMARY KEY (cell, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
    tenant       TEXT    NOT NULL,
    uid          BLOB    NOT NULL,
    cell         TEXT    NOT NULL,
    partition    INTEGER NOT NULL,
    -- JSON.
    state        TEXT    NOT NULL,
    -- What the state says; NULL where the agent has not reported its health.
    healthy      INTEGER,
    -- How many files the effective config has; NULL where the agent has not reported one.
    config_files INTEGER,
    PRIMARY KEY (tenant, uid, cell)
) STRICT;

CREATE INDEX agents_by_partition ON agents (cell, partition, tenant, uid);

-- The last session of each agent. Apart from the agents, so that starts and ends write little.
CREATE TABLE sessions (
    tenant      TEXT    NOT NULL,
    uid         BLOB    NOT NULL,
    cell        TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    session_id  BLOB    NOT NULL,
    claim       INTEGER NOT NULL,
    gateway     TEXT    NOT NULL,
    incarnation BLOB    NOT NULL,
    transport   TEXT    NOT NULL,
    remote_addr TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    end_reason  TEXT,
    PRIMARY KEY (tenant, uid, cell)
) STRICT, WITHOUT ROWID;

CREATE INDEX live_sessions ON sessions (cell, partition, incarnation) WHERE ended_at IS NULL;

CREATE TABLE effective_configs (
    tenant       TEXT NOT NULL,
    uid          BLOB NOT NULL,
    cell         TEXT NOT NULL,
    file         TEXT NOT NULL,
    content_type TEXT NOT NULL,
    body         BLOB NOT NULL,
    PRIMARY KEY (tenant, uid, cell, file)
) STRICT;

-- Entries of the log that could not be folded.
CREATE TABLE quarantine (
    cell       TEXT    NOT NULL,
    partition  INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    message_id BLOB    NOT NULL,
    -- The agent that it is from, as far as that can be told.
    tenant     TEXT,
    uid        BLOB,
    payload    BLOB    NOT NULL,
    reason     TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (cell, partition, epoch, position)
) STRICT;

-- Id of the cluster: one row.
CREATE TABLE cluster (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    id  BLOB    NOT NULL
) STRICT;

-- Number of the present state of each tenant's intent.
CREATE TABLE intents (
    tenant   TEXT    NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Revisions of templates. They never change; the ordinal is the order of their creation.
CREATE TABLE templates (
    ordinal    INTEGER PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    id         BLOB    NOT NULL,
    digest     BLOB    NOT NULL,
    source     TEXT    NOT NULL,
    -- JSON.
    compiled   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant, name, version)
) STRICT;

CREATE TABLE assignments (
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    -- JSON.
    spec       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT;

CREATE TABLE labels (
    tenant     TEXT    NOT NULL,
    uid        BLOB    NOT NULL,
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, uid, key)
) STRICT, WITHOUT ROWID;
