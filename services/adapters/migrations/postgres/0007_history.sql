-- Who applied a revision of a template, and why.
ALTER TABLE templates ADD COLUMN author text NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN message text NOT NULL DEFAULT '';

-- Changes of intent that are remembered: one row for each, and one for each object that it changed. They
-- never change.
CREATE TABLE changes (
    tenant   text   COLLATE "C" NOT NULL,
    -- The revision of the tenant's intent that the change made.
    revision bigint NOT NULL,
    at       bigint NOT NULL,
    author   text   NOT NULL,
    message  text   NOT NULL,
    PRIMARY KEY (tenant, revision)
);

CREATE TABLE changed_objects (
    tenant   text    COLLATE "C" NOT NULL,
    revision bigint  NOT NULL,
    number   integer NOT NULL,
    kind     text    COLLATE "C" NOT NULL,
    name     text    COLLATE "C" NOT NULL,
    -- JSON.
    outcome  text    NOT NULL,
    PRIMARY KEY (tenant, revision, number)
);

CREATE INDEX changes_of_object ON changed_objects (tenant, kind, name, revision);

-- The source that may prune an object.
CREATE TABLE owners (
    tenant text COLLATE "C" NOT NULL,
    kind   text COLLATE "C" NOT NULL,
    name   text COLLATE "C" NOT NULL,
    owner  text NOT NULL,
    PRIMARY KEY (tenant, kind, name)
);
