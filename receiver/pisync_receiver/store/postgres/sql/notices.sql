-- name: add_transitions
-- Note transitions, a JSON array of objects.
INSERT INTO transitions (device_id, site, before, state, at_ms, since_ms, errors, notified_ms)
SELECT device_id, site, before, state, at_ms, since_ms, errors, notified_ms
FROM json_populate_recordset(NULL::transitions, :rows::json);

-- name: put_watched
-- Note the states that devices are in, a JSON array of objects.
INSERT INTO watched SELECT * FROM json_populate_recordset(NULL::watched, :rows::json)
ON CONFLICT (device_id) DO UPDATE SET state = excluded.state, silent_at_ms = excluded.silent_at_ms;

-- name: lags
-- How many events each consumer has yet to publish.
SELECT consumer, greatest(last_arrival() - event_id, 0) FROM positions;
