-- Why a session ended, where `end_reason` has to say it in words that every version of the program knows;
-- and since when its agent says nothing, of this session if it is not before `started_at`.
ALTER TABLE sessions ADD COLUMN end_detail text;
ALTER TABLE sessions ADD COLUMN silent_since bigint;

-- Whether the agent runs something else than it had applied.
ALTER TABLE agent_states ADD COLUMN drifted boolean NOT NULL DEFAULT false;
CREATE INDEX drifted_agents ON agent_states (tenant, uid) WHERE drifted;
