-- The revision of a tenant's intent below which nothing that an assignment gave is offered any more. A
-- floor outlives its assignment, and only rises.
CREATE TABLE floors (
    tenant     TEXT    NOT NULL,
    assignment TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    PRIMARY KEY (tenant, assignment)
) STRICT, WITHOUT ROWID;
