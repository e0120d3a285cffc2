-- Why a session ended, where `end_reason` has to say it in words that every version of the program knows;
-- and since when its agent says nothing, of this session if it is not before `started_at`.
ALTER TABLE sessions ADD COLUMN end_detail TEXT;
ALTER TABLE sessions ADD COLUMN silent_since INTEGER;
