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

-- name: missing_ranges
-- The first missing ranges of each stream of some devices.
SELECT s.device_id, s.stream, g.first, g.last
FROM streams AS s, LATERAL (
    SELECT first, last FROM gaps WHERE device_id = s.device_id AND stream = s.stream ORDER BY first LIMIT :each
) AS g
WHERE s.device_id IN (SELECT value FROM json_each(:devices)) AND s.watermark < s.highest
ORDER BY s.device_id, s.stream, g.first;
