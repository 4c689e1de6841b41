-- name: bounds
-- Limit the transaction's time. Every row it needs has a key, looked up for each; a planner with old statistics would
-- scan the table, or all of a device's rows, and join them. A group of events holds off erasures, and gets the keys of
-- erased learners.
SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true),
       set_config('idle_in_transaction_session_timeout', $1, true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       CASE WHEN $2::boolean THEN hold_erasures() END;

-- name: lock_devices
-- Lock devices until the commit, making those that are missing. They are sorted, so that two groups rarely deadlock; it
-- is an INSERT, because Citus refuses a SELECT that locks rows of several shards.
INSERT INTO devices (device_id) SELECT wanted FROM unnest($1::text[]) AS wanted ORDER BY wanted
ON CONFLICT (device_id) DO UPDATE SET conflicts = devices.conflicts RETURNING *;

-- name: lock_device
-- Lock a device until the commit, if it is there.
SELECT * FROM devices WHERE device_id = $1 FOR UPDATE;

-- name: find_streams
-- Streams by their names.
SELECT s.* FROM unnest($1::text[], $2::text[]) AS wanted (device_id, stream)
JOIN streams AS s ON s.device_id = wanted.device_id AND s.stream = wanted.stream;

-- name: find_sync_events
-- Sync events by their idempotency keys.
SELECT s.* FROM unnest($1::text[], $2::text[]) AS wanted (device_id, key)
JOIN sync_events AS s ON s.device_id = wanted.device_id AND s.idempotency_key = wanted.key;

-- name: find_event_keys
-- Where events with some keys are stored.
SELECT k.* FROM unnest($1::text[], $2::bytea[]) AS wanted (device_id, key)
JOIN event_keys AS k ON k.device_id = wanted.device_id AND k.key = wanted.key;

-- name: take_sync_event_ids
-- Ids of sync events; taken while their devices are locked, so that a device's ids count up.
SELECT nextval('sync_event_ids') FROM generate_series(1, $1::bigint);

-- name: lock_tokens
-- Tokens by hash, by id, and those of devices that were not revoked; locked until the commit.
SELECT * FROM tokens
WHERE token_hash = ANY($1::text[]) OR id = ANY($2::bigint[]) OR (device_id = ANY($3::text[]) AND revoked_ms IS NULL)
ORDER BY id FOR UPDATE;

-- name: lock_codes
-- Enrollment codes by hash and by id; locked until the commit.
SELECT * FROM enrollments WHERE code_hash = ANY($1::text[]) OR id = ANY($2::bigint[]) ORDER BY id FOR UPDATE;

-- name: add_devices
-- Devices that were not there when the group looked.
INSERT INTO devices SELECT * FROM json_populate_recordset(NULL::devices, $1::json);

-- name: change_devices
-- Devices that this transaction locked.
UPDATE devices AS d SET
    label = r.label, site = r.site, site_since_ms = r.site_since_ms, site_history = r.site_history, agent = r.agent,
    enrolled_ms = r.enrolled_ms, code_id = r.code_id, retired_ms = r.retired_ms, last_contact_ms = r.last_contact_ms,
    last_refused_ms = r.last_refused_ms, cloned_since_ms = r.cloned_since_ms, conflicts = r.conflicts,
    streams = r.streams, copies = r.copies, sync_asked_ms = r.sync_asked_ms, changed_ms = r.changed_ms,
    consecutive_failures = r.consecutive_failures, total_failures = r.total_failures,
    failing_since_ms = r.failing_since_ms, last_sync_ms = r.last_sync_ms, last_success_ms = r.last_success_ms,
    streak_after_ms = r.streak_after_ms, last_failure_ms = r.last_failure_ms, last_errors = r.last_errors
FROM json_populate_recordset(NULL::devices, $1::json) AS r
WHERE d.device_id = r.device_id;

-- name: put_streams
-- Begin streams, or replace them; their devices are locked.
INSERT INTO streams SELECT * FROM json_populate_recordset(NULL::streams, $1::json)
ON CONFLICT (device_id, stream) DO UPDATE SET
    watermark = excluded.watermark, highest = excluded.highest, stored = excluded.stored, carried = excluded.carried,
    rejected = excluded.rejected, conflicts = excluded.conflicts, last_ms = excluded.last_ms,
    best_ms = excluded.best_ms, boots = excluded.boots;

-- name: close_gaps
-- Missing ranges that are missing no longer.
DELETE FROM gaps AS g USING json_populate_recordset(NULL::gaps, $1::json) AS r
WHERE g.device_id = r.device_id AND g.stream = r.stream AND g.first = r.first;

-- name: add_gaps
-- Missing ranges.
INSERT INTO gaps SELECT * FROM json_populate_recordset(NULL::gaps, $1::json);

-- name: add_event_keys
-- Where events with some keys are stored. Bytes are Base64 in JSON; read into a bytea, they are the bytes of that text.
INSERT INTO event_keys
SELECT device_id, decode(encode(key, 'escape'), 'base64'), stored_device_id, stream, seq
FROM json_populate_recordset(NULL::event_keys, $1::json);

-- name: add_carried
-- Seqs whose events are stored elsewhere.
INSERT INTO carried
SELECT device_id, stream, seq, decode(encode(content, 'escape'), 'base64'), stored_device_id, stored_stream, stored_seq
FROM json_populate_recordset(NULL::carried, $1::json);

-- name: add_rejected
-- Rejected events and conflicting versions.
INSERT INTO rejected
SELECT device_id, stream, seq, decode(encode(content, 'escape'), 'base64'), code, detail, body, received_ms
FROM json_populate_recordset(NULL::rejected, $1::json);

-- name: add_sync_events
-- Sync events.
INSERT INTO sync_events SELECT * FROM json_populate_recordset(NULL::sync_events, $1::json);

-- name: take_arrival_numbers
-- Take the next arrival numbers; the row stays locked until the commit, so that they become visible in their order.
UPDATE arrival_counter SET last = last + $1::bigint WHERE one = 1;

-- name: add_events
-- Events, with the arrival numbers that were just taken, in their order.
INSERT INTO events
SELECT
    counter.last - $2::bigint + r.ordinality, r.device_id, r.stream, r.seq, r.type, r.site, r.learner_home,
    r.learner_id, r.object_id, r.event_id, r.occurred_at, r.recorded_at, r.boot_id, r.boottime_ms, r.clock_synced,
    r.data, r.received_ms, r.best_ms, r.quality, decode(encode(r.content, 'escape'), 'base64')
FROM arrival_counter AS counter, json_populate_recordset(NULL::events, $1::json) WITH ORDINALITY AS r
WHERE counter.one = 1;

-- name: repair_events
-- Better times of stored events.
UPDATE events AS e SET best_ms = r.best_ms, quality = r.quality
FROM json_populate_recordset(NULL::events, $1::json) AS r
WHERE e.device_id = r.device_id AND e.stream = r.stream AND e.seq = r.seq;

-- name: add_arrivals
-- Widen the ranges of arrival numbers of some hours.
INSERT INTO arrivals
SELECT r.hour, counter.last - $2::bigint + r.first_id, counter.last - $2::bigint + r.last_id
FROM arrival_counter AS counter, json_populate_recordset(NULL::arrivals, $1::json) AS r WHERE counter.one = 1
ON CONFLICT (hour) DO UPDATE SET
    first_id = least(arrivals.first_id, excluded.first_id), last_id = greatest(arrivals.last_id, excluded.last_id);

-- name: add_sums
-- Add to the daily sums of some objects, in the order of their key.
INSERT INTO sums
SELECT %(what)s, %(day)s, %(site)s, %(name)s, key, value::bigint FROM json_each_text(%(counts)s::json)
ORDER BY key COLLATE "C"
ON CONFLICT (what, day, site, name, object) DO UPDATE SET
    count = least(sums.count + excluded.count, 9007199254740991);

-- name: try_lock
-- Take a named lock until the transaction ends; false while another receiver holds it.
SELECT pg_try_advisory_xact_lock(hashtextextended('pisync ' || $1::text, 0));

-- name: lock_audit
-- Keep other transactions from adding to the audit log until the commit; a statement after it sees what they added.
SELECT pg_advisory_xact_lock(hashtextextended('pisync audit', 0));
