-- Who applied a revision of a template, and why.
ALTER TABLE templates ADD COLUMN author text NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN message text NOT NULL DEFAULT '';

-- Changes of intent that are remembered: one row for each, and one for each object that it changed. They
-- never change.
CREATE TABLE changes (
    tenant   TEXT    NOT NULL,
    -- The revision of the tenant's intent that the change made.
    revision INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    author   TEXT    NOT NULL,
    message  TEXT    NOT NULL,
    PRIMARY KEY (tenant, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE changed_objects (
    tenant   TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    -- JSON.
    outcome  TEXT    NOT NULL,
    PRIMARY KEY (tenant, revision, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX changes_of_object ON changed_objects (tenant, kind, name, revision);

-- The source that may prune an object.
CREATE TABLE owners (
    tenant TEXT NOT NULL,
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    owner  TEXT NOT NULL,
    PRIMARY KEY (tenant, kind, name)
) STRICT, WITHOUT ROWID;
