-- name: notes_of_device
-- What was written about a device, newest first.
SELECT id, at_ms, author, text FROM notes WHERE device_id = :device AND id < :before ORDER BY id DESC LIMIT :limit;

-- name: notes_of_site
-- What was written about a site, newest first.
SELECT id, at_ms, author, text FROM notes WHERE site = :site AND id < :before ORDER BY id DESC LIMIT :limit;

-- name: insert_note
-- Write about a device or a site.
INSERT INTO notes (device_id, site, at_ms, author, text) VALUES (:device, :site, :at, :author, :text) RETURNING id;

-- name: conflict_events
-- What stands under the next seqs of a device that have several versions: an event of its own, or one stored elsewhere.
SELECT places.stream, places.seq, e.*
FROM (SELECT DISTINCT stream, seq FROM rejected
      WHERE device_id = :device AND code = 'conflict' AND (stream, seq) > (:stream, :seq)
      ORDER BY stream, seq LIMIT :limit) AS places
     JOIN events AS e ON e.device_id = :device AND e.stream = places.stream AND e.seq = places.seq
UNION ALL
SELECT places.stream, places.seq, e.*
FROM (SELECT DISTINCT stream, seq FROM rejected
      WHERE device_id = :device AND code = 'conflict' AND (stream, seq) > (:stream, :seq)
      ORDER BY stream, seq LIMIT :limit) AS places
     JOIN carried AS c ON c.device_id = :device AND c.stream = places.stream AND c.seq = places.seq
     JOIN events AS e ON e.device_id = c.stored_device_id AND e.stream = c.stored_stream AND e.seq = c.stored_seq;

-- name: conflict_versions
-- What else was sent under those seqs; a version with another code was first, and stands.
SELECT places.stream, places.seq, r.code, substr(r.body, 1, CAST(:longest AS INTEGER)), r.received_ms
FROM (SELECT DISTINCT stream, seq FROM rejected
      WHERE device_id = :device AND code = 'conflict' AND (stream, seq) > (:stream, :seq)
      ORDER BY stream, seq LIMIT :limit) AS places
     JOIN rejected AS r ON r.device_id = :device AND r.stream = places.stream AND r.seq = places.seq
ORDER BY places.stream, places.seq, r.received_ms, r.content;

-- name: suspicious
-- Devices by id that seem to be several: seen as a clone, with a token that was used after its end, or enrolled more
-- than once by one code.
SELECT device_id, site, cloned_since_ms, used_ms, code_id, enrolled_ms, times
FROM (SELECT d.device_id, d.site, d.cloned_since_ms, d.code_id, d.enrolled_ms,
             (SELECT max(t.last_refused_ms) FROM tokens AS t
              WHERE t.device_id = d.device_id AND t.last_refused_ms >= t.revoked_ms) AS used_ms,
             (SELECT count(*) FROM tokens AS t JOIN enrollments AS e ON e.id = d.code_id
              WHERE t.device_id = d.device_id AND t.created_ms >= e.created_ms) AS times
      FROM devices AS d
      WHERE d.device_id > :after
        AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
        AND (d.cloned_since_ms IS NOT NULL
             OR d.device_id IN (SELECT device_id FROM tokens WHERE device_id IS NOT NULL AND last_refused_ms IS NOT NULL)
             OR d.device_id IN (SELECT device_id FROM tokens WHERE device_id IS NOT NULL
                                GROUP BY device_id HAVING count(*) > 1))
     ) AS seen
WHERE cloned_since_ms IS NOT NULL OR used_ms IS NOT NULL OR times > 1
ORDER BY device_id LIMIT :limit;
