-- name: sessions_of
-- The sessions of some tokens that are not revoked.
SELECT * FROM tokens WHERE parent_id IN (SELECT value FROM json_each(:parents)) AND revoked_ms IS NULL ORDER BY id;

-- name: delete_sessions
-- Delete sessions that ended before a moment.
DELETE FROM tokens WHERE session_until_ms < :before;

-- name: tokens
-- Every token, the oldest first; with `sessions`, sessions too.
SELECT * FROM tokens WHERE session_until_ms IS NULL OR :sessions = 1 ORDER BY id;

-- name: last_audit
-- The last entry of the audit log.
SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1;

-- name: insert_audit
-- Add an entry to the audit log.
INSERT INTO audit (id, at_ms, actor, token_id, address, act, target, detail, hash)
VALUES (:id, :at, :actor, :token, :address, :act, :target, :detail, :hash);

-- name: audit_newest
-- Entries of the audit log, the newest first.
SELECT id, at_ms, actor, token_id, address, act, target, detail, hash FROM audit
WHERE id < :before AND at_ms >= :since AND at_ms < :until
  AND (act = :act OR :act IS NULL) AND (actor = :actor OR :actor IS NULL) AND (target = :target OR :target IS NULL)
ORDER BY id DESC LIMIT :limit;

-- name: audit_oldest
-- Entries of the audit log, the oldest first.
SELECT id, at_ms, actor, token_id, address, act, target, detail, hash FROM audit
WHERE id > :after AND at_ms >= :since AND at_ms < :until
  AND (act = :act OR :act IS NULL) AND (actor = :actor OR :actor IS NULL) AND (target = :target OR :target IS NULL)
ORDER BY id LIMIT :limit;
