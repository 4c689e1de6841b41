-- name: gaps
-- The first missing ranges of each of a device's streams.
SELECT g.stream, g.first, g.last
FROM streams AS s CROSS JOIN gaps AS g ON g.device_id = s.device_id AND g.stream = s.stream
WHERE s.device_id = :device AND s.watermark < s.highest
  AND g.first < ifnull((SELECT later.first FROM gaps AS later
                        WHERE later.device_id = s.device_id AND later.stream = s.stream
                        ORDER BY later.first LIMIT 1 OFFSET :each), 9223372036854775807)
ORDER BY s.stream, g.first LIMIT :limit;

-- name: newest_rejected
-- The newest of what was rejected of each of a device's streams.
SELECT r.stream, r.seq, r.code, r.detail
FROM streams AS s CROSS JOIN rejected AS r
WHERE s.device_id = :device AND s.rejected + s.conflicts > 0
  AND r.rowid IN (SELECT newest.rowid FROM rejected AS newest
                  WHERE newest.device_id = s.device_id AND newest.stream = s.stream
                  ORDER BY newest.received_ms DESC, newest.seq DESC, newest.content DESC LIMIT :each)
ORDER BY r.received_ms DESC, r.seq DESC, r.content DESC LIMIT :limit;

-- name: lock_erasures
-- One process writes, one group at a time.
SELECT 1;

-- name: delete_keys_at
-- Keys of events that are deleted: `places` is JSON text.
DELETE FROM event_keys WHERE (stored_device_id, stream, seq) IN
    (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
     FROM json_each(:places));

-- name: delete_copies_of
-- Accounts of copies of events that are deleted: their seqs stay accounted for.
DELETE FROM carried WHERE (stored_device_id, stored_stream, stored_seq) IN
    (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
     FROM json_each(:places));

-- name: missing_ranges
-- The first missing ranges of each stream of some devices.
SELECT s.device_id, g.stream, g.first, g.last
FROM json_each(:devices) AS wanted CROSS JOIN streams AS s ON s.device_id = wanted.value
     CROSS JOIN gaps AS g ON g.device_id = s.device_id AND g.stream = s.stream
WHERE s.watermark < s.highest
  AND g.first < ifnull((SELECT later.first FROM gaps AS later
                        WHERE later.device_id = s.device_id AND later.stream = s.stream
                        ORDER BY later.first LIMIT 1 OFFSET :each), 9223372036854775807)
ORDER BY s.device_id, g.stream, g.first;
