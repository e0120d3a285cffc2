-- The revision of a tenant's intent below which nothing that an assignment gave is offered any more. A
-- floor outlives its assignment, and only rises.
CREATE TABLE floors (
    tenant     text   COLLATE "C" NOT NULL,
    assignment text   COLLATE "C" NOT NULL,
    revision   bigint NOT NULL,
    PRIMARY KEY (tenant, assignment)
);
