-- name: streams_by_name
-- Some streams.
SELECT streams.* FROM json_each(?) AS wanted CROSS JOIN streams
     ON device_id = json_extract(wanted.value, '$[0]') AND stream = json_extract(wanted.value, '$[1]');

-- name: sync_events_by_key
-- The sync events that were stored under some keys.
SELECT sync_events.* FROM json_each(?) AS wanted CROSS JOIN sync_events INDEXED BY sync_events_by_key
     ON device_id = json_extract(wanted.value, '$[0]') AND idempotency_key = json_extract(wanted.value, '$[1]');

-- name: last_sync_event
-- The last id that a sync event was given.
SELECT seq FROM sqlite_sequence WHERE name = 'sync_events';

-- name: last_event
-- The last id that an event was given; retention may have deleted that event.
SELECT ifnull(max((SELECT max(id) FROM events), (SELECT max(last_id) FROM arrivals)), 0);

-- name: event_key
-- Where an event with this key is stored.
SELECT stored_device_id, stream, seq FROM event_keys WHERE device_id = ? AND key = ?;

-- name: tokens_wanted
-- Tokens by hash or id, and those of some devices that are not revoked.
SELECT * FROM tokens
WHERE token_hash IN (SELECT value FROM json_each(?1)) OR id IN (SELECT value FROM json_each(?2))
   OR (device_id IN (SELECT value FROM json_each(?3)) AND revoked_ms IS NULL)
ORDER BY id;

-- name: codes_wanted
-- Enrollment codes by hash or id.
SELECT * FROM enrollments
WHERE code_hash IN (SELECT value FROM json_each(?1)) OR id IN (SELECT value FROM json_each(?2)) ORDER BY id;

-- name: put_device
-- Make or change a device.
REPLACE INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: put_stream
-- Make a stream or move its counters.
REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_event
-- Store an event.
INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: repair_event
-- A better time of a stored event.
UPDATE events SET best_ms = ?4, quality = ?5 WHERE device_id = ?1 AND stream = ?2 AND seq = ?3;

-- name: put_arrivals
-- Widen an hour's range of ids.
INSERT INTO arrivals (hour, first_id, last_id) VALUES (?, ?, ?)
ON CONFLICT (hour) DO UPDATE SET last_id = excluded.last_id;

-- name: insert_event_key
-- Remember where an event with a key is stored.
INSERT INTO event_keys VALUES (?, ?, ?, ?, ?);

-- name: insert_carried
-- Account for a seq whose event is stored elsewhere.
INSERT INTO carried VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: insert_rejected
-- Keep what was rejected.
INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: delete_gap
-- Forget a missing range.
DELETE FROM gaps WHERE device_id = ? AND stream = ? AND first = ? AND last = ?;

-- name: insert_gap
-- Remember a missing range.
INSERT INTO gaps VALUES (?, ?, ?, ?);

-- name: insert_sync_event
-- Store a sync event.
INSERT INTO sync_events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_sums
-- Add to the daily sums of some objects.
INSERT INTO sums SELECT :what, :day, :site, :name, key, value FROM json_each(:counts) WHERE true
ON CONFLICT (what, day, site, name, object) DO UPDATE SET count = min(count + excluded.count, 9007199254740991);
