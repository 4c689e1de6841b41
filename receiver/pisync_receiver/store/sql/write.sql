-- name: versions
-- Every version under some seqs of a stream: stored or carried first, then rejected, conflicts last.
SELECT seq, 'stored' AS kind, content, '' AS detail, 0 AS place, received_ms FROM events
WHERE device_id = :device AND stream = :stream AND seq IN (SELECT value FROM json_each(:seqs))
UNION ALL
SELECT seq, 'carried', content, '', 0, 0 FROM carried
WHERE device_id = :device AND stream = :stream AND seq IN (SELECT value FROM json_each(:seqs))
UNION ALL
SELECT seq, code, content, detail, CASE code WHEN 'conflict' THEN 2 ELSE 1 END, received_ms FROM rejected
WHERE device_id = :device AND stream = :stream AND seq IN (SELECT value FROM json_each(:seqs))
ORDER BY seq, place, received_ms;

-- name: neighbours
-- The best times of the stored events before a seq and after another.
SELECT (SELECT best_ms FROM events WHERE device_id = :device AND stream = :stream AND seq < :first
        ORDER BY seq DESC LIMIT 1),
       (SELECT best_ms FROM events WHERE device_id = :device AND stream = :stream AND seq > :last
        ORDER BY seq LIMIT 1);

-- name: earlier
-- The events before a seq, the newest first; none unless the newest is of a boot.
SELECT seq, type, site, object_id, occurred_at, recorded_at, boot_id, boottime_ms, received_ms, best_ms, quality
FROM events
WHERE device_id = :device AND stream = :stream
  AND seq < (SELECT CASE WHEN newest.boot_id = :boot THEN newest.seq + 1 ELSE 0 END FROM events AS newest
             WHERE newest.device_id = :device AND newest.stream = :stream AND newest.seq < :below
             ORDER BY newest.seq DESC LIMIT 1)
ORDER BY seq DESC LIMIT :limit;

-- name: failures_after
-- A device's failures after a moment: how many, up to a limit, and the oldest.
SELECT count(*), min(at_ms)
FROM (SELECT at_ms FROM sync_events INDEXED BY sync_events_failed
      WHERE device_id = :device AND at_ms > :at AND total_errors > 0 ORDER BY at_ms LIMIT :limit) AS failed;

-- name: change_token
-- Change when a token ends or was refused.
UPDATE tokens SET expires_ms = :expires_ms, revoked_ms = :revoked_ms, last_refused_ms = :last_refused_ms,
                  session_until_ms = :session_until_ms
WHERE id = :id;

-- name: change_code
-- Change a code's remaining uses or its end.
UPDATE enrollments SET ended_ms = :ended_ms, uses_left = :uses_left WHERE id = :id;

-- name: beat
-- Write something small.
UPDATE pulse SET beats = beats + 1 WHERE id = 1;

-- name: old_events
-- The first events, of one type or of all, that arrived before a moment; `arrivals` bounds the search.
SELECT id, device_id, stream, seq FROM events NOT INDEXED
WHERE received_ms < :before AND id <= coalesce((SELECT max(last_id) FROM arrivals WHERE hour <= :hour), 0)
  AND id > :after AND id <= :upto AND (type = :type OR :type IS NULL)
ORDER BY id LIMIT :limit;

-- name: old_sync_events
-- The first sync events that arrived before a moment; none for a type of events.
SELECT id, received_ms FROM sync_events INDEXED BY sync_events_by_arrival WHERE received_ms < :before AND CAST(:type AS TEXT) IS NULL
ORDER BY received_ms LIMIT :limit;

-- name: delete_events
-- Delete events.
DELETE FROM events WHERE id IN (SELECT value FROM json_each(:ids));

-- name: gaps_wanted
-- The first gaps of a stream, and for each of some seqs the last gap that begins at or before it.
SELECT first, last
FROM (SELECT first, last FROM gaps WHERE device_id = :device AND stream = :stream ORDER BY first LIMIT :count) AS lowest
UNION
SELECT g.first, g.last FROM json_each(:seqs) AS wanted CROSS JOIN gaps AS g
WHERE g.device_id = :device AND g.stream = :stream
  AND g.first = (SELECT max(lower.first) FROM gaps AS lower
                 WHERE lower.device_id = :device AND lower.stream = :stream AND lower.first <= wanted.value)
ORDER BY 1;

-- name: insert_token
-- Make a token.
INSERT INTO tokens (scope, token_hash, device_id, label, sites, created_ms, expires_ms, revoked_ms, last_refused_ms,
                    parent_id, session_until_ms)
VALUES (:scope, :token_hash, :device_id, :label, :sites, :created_ms, :expires_ms, :revoked_ms, :last_refused_ms,
        :parent_id, :session_until_ms)
RETURNING token_hash, id;

-- name: insert_code
-- Make an enrollment code.
INSERT INTO enrollments (code_hash, label, created_ms, expires_ms, ended_ms, uses, uses_left, site, device_id)
VALUES (:code_hash, :label, :created_ms, :expires_ms, :ended_ms, :uses, :uses_left, :site, :device_id)
RETURNING code_hash, id;

-- name: delete_sync_events
-- Delete sync events; the moment of the newest bounds the search.
DELETE FROM sync_events WHERE id IN (SELECT value FROM json_each(:ids)) AND received_ms <= :newest;
