-- name: add_transitions
-- Note transitions, a JSON array of objects.
INSERT INTO transitions (device_id, site, before, state, at_ms, since_ms, errors, notified_ms)
SELECT json_extract(value, '$.device_id'), json_extract(value, '$.site'), json_extract(value, '$.before'),
       json_extract(value, '$.state'), json_extract(value, '$.at_ms'), json_extract(value, '$.since_ms'),
       json_extract(value, '$.errors'), json_extract(value, '$.notified_ms')
FROM json_each(:rows);

-- name: put_watched
-- Note the states that devices are in, a JSON array of objects.
REPLACE INTO watched (device_id, state, silent_at_ms)
SELECT json_extract(value, '$.device_id'), json_extract(value, '$.state'), json_extract(value, '$.silent_at_ms')
FROM json_each(:rows);
