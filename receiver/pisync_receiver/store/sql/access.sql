-- name: sessions_of
-- The sessions of some tokens that are not revoked.
SELECT * FROM tokens WHERE parent_id IN (SELECT value FROM json_each(:parents)) AND revoked_ms IS NULL ORDER BY id;

-- name: delete_sessions
-- Delete sessions that ended before a moment.
DELETE FROM tokens WHERE session_until_ms < :before;

-- name: tokens
-- Every token, the oldest first; with `sessions`, sessions too.
SELECT * FROM tokens WHERE session_until_ms IS NULL OR :sessions = 1 ORDER BY id;
