-- name: gaps
-- The first missing ranges of each of a device's streams.
SELECT s.stream, g.first, g.last
FROM streams AS s, LATERAL (
    SELECT first, last FROM gaps WHERE device_id = :device AND stream = s.stream ORDER BY first LIMIT :each
) AS g
WHERE s.device_id = :device AND s.watermark < s.highest
ORDER BY s.stream, g.first LIMIT :limit;

-- name: newest_rejected
-- The newest of what was rejected of each of a device's streams.
SELECT s.stream, r.seq, r.code, r.detail
FROM streams AS s, LATERAL (
    SELECT seq, code, detail, received_ms, content FROM rejected
    WHERE device_id = :device AND stream = s.stream
    ORDER BY received_ms DESC, seq DESC, content DESC LIMIT :each
) AS r
WHERE s.device_id = :device AND s.rejected + s.conflicts > 0
ORDER BY r.received_ms DESC, r.seq DESC, r.content DESC LIMIT :limit;

-- name: lock_erasures
-- Wait until no group under way may store what is being erased; those that follow wait until the commit.
SELECT pg_advisory_xact_lock(hashtextextended('pisync erasure', 0));

-- name: delete_keys_at
-- Keys of events that are deleted: `places` is JSON text.
DELETE FROM event_keys AS k USING json_array_elements(:places::json) AS r (place)
WHERE k.stored_device_id = r.place ->> 0 AND k.stream = r.place ->> 1 AND k.seq = CAST(r.place ->> 2 AS bigint);

-- name: delete_copies_of
-- Accounts of copies of events that are deleted: their seqs stay accounted for.
DELETE FROM carried AS c USING json_array_elements(:places::json) AS r (place)
WHERE c.stored_device_id = r.place ->> 0 AND c.stored_stream = r.place ->> 1
  AND c.stored_seq = CAST(r.place ->> 2 AS bigint);

-- name: missing_ranges
-- The first missing ranges of each stream of some devices.
SELECT s.device_id, s.stream, g.first, g.last
FROM streams AS s, LATERAL (
    SELECT first, last FROM gaps WHERE device_id = s.device_id AND stream = s.stream ORDER BY first LIMIT :each
) AS g
WHERE s.device_id IN (SELECT value FROM json_each(:devices)) AND s.watermark < s.highest
ORDER BY s.device_id, s.stream, g.first;
