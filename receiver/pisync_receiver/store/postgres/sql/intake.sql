-- name: begin
-- Bound how long this transaction may take; first, because the writer's mark may be locked still by its last group.
SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true),
       set_config('idle_in_transaction_session_timeout', $1, true);

-- name: add_writer
-- A writer that has stored no group yet.
INSERT INTO marks (writer, last_group) VALUES ($1, 0) ON CONFLICT (writer) DO NOTHING;

-- name: mark
-- This transaction stores that group.
UPDATE marks SET last_group = $2, marked_at = now() WHERE writer = $1;

-- name: is_marked
-- Whether a group was stored; refused while its transaction is under way.
SELECT last_group = $2 FROM marks WHERE writer = $1 FOR UPDATE NOWAIT;

-- name: lock_devices
-- Devices as they are, nobody else's until the commit; in one order, so that two groups never wait for each other.
SELECT device_id, site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_failure_ms, last_errors
FROM devices WHERE device_id = ANY($1::text[]) ORDER BY device_id FOR UPDATE;

-- name: add_devices
-- Make rows for devices that have none, so that they can be locked; which ones were made.
INSERT INTO devices (device_id) SELECT new FROM unnest($1::text[]) AS new ORDER BY new
ON CONFLICT DO NOTHING RETURNING device_id;

-- name: find_streams
-- Counters of some streams.
SELECT s.device_id, s.stream, s.number, s.watermark, s.highest, s.stored, s.carried, s.rejected, s.conflicts,
       s.first_ms, s.last_ms
FROM unnest($1::text[], $2::text[]) AS wanted (device_id, stream)
     JOIN streams AS s ON s.device_id = wanted.device_id AND s.stream = wanted.stream
WHERE s.device_id = ANY($1::text[]);

-- name: find_copies
-- In which of some streams anything was first recorded that is stored elsewhere.
SELECT wanted.device_id, wanted.stream FROM unnest($1::text[], $2::text[]) AS wanted (device_id, stream)
WHERE EXISTS (SELECT FROM origins AS o
              WHERE o.device_id = wanted.device_id AND o.stream = wanted.stream AND o.device_id = ANY($1::text[]));

-- name: find_boots
-- When some boots began.
SELECT b.device_id, b.stream, b.boot_id, b.epoch_ms
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (device_id, stream, boot_id)
     JOIN boots AS b ON b.device_id = wanted.device_id AND b.stream = wanted.stream AND b.boot_id = wanted.boot_id
WHERE b.device_id = ANY($1::text[]);

-- name: find_overlaps
-- For some boots as they are now seen alive, which was alive together with another of its stream.
SELECT seen.device_id, seen.stream, seen.boot_id, seen.epoch_ms, seen.boottime_ms
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
     AS seen (device_id, stream, boot_id, epoch_ms, boottime_ms)
WHERE EXISTS (
    SELECT FROM boots AS other LEFT JOIN boots AS known
        ON known.device_id = other.device_id AND known.stream = other.stream AND known.boot_id = seen.boot_id
           AND known.device_id = ANY($1::text[]),
    LATERAL (SELECT least(seen.epoch_ms, known.epoch_ms) AS epoch_ms,
                    greatest(seen.boottime_ms, known.boottime_ms) AS boottime_ms) AS this
    WHERE other.device_id = seen.device_id AND other.stream = seen.stream AND other.boot_id <> seen.boot_id
      AND other.device_id = ANY($1::text[])
      AND (this.epoch_ms <= other.epoch_ms AND this.epoch_ms + this.boottime_ms > other.epoch_ms + $6
           OR other.epoch_ms <= this.epoch_ms AND other.epoch_ms + other.boottime_ms > this.epoch_ms + $6));

-- name: find_best
-- The best times of the stored events before and after some runs of seqs.
SELECT wanted.device_id, wanted.stream, wanted.first, wanted.last,
       (SELECT e.best_ms FROM events AS e
        WHERE e.device_id = wanted.device_id AND e.stream = wanted.stream AND e.seq < wanted.first
          AND e.device_id = ANY($1::text[])
        ORDER BY e.seq DESC LIMIT 1),
       (SELECT e.best_ms FROM events AS e
        WHERE e.device_id = wanted.device_id AND e.stream = wanted.stream AND e.seq > wanted.last
          AND e.device_id = ANY($1::text[])
        ORDER BY e.seq LIMIT 1)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS wanted (device_id, stream, first, last);

-- name: find_keys
-- The sync events that were stored under some keys.
SELECT s.device_id, s.idempotency_key, s.id, s.device_id, s.timestamp, s.at_ms, s.total_files_synced, s.total_errors,
       s.internet_speed, s.errors, s.received_ms
FROM unnest($1::text[], $2::text[]) AS wanted (device_id, key)
     JOIN sync_events AS s ON s.device_id = wanted.device_id AND s.idempotency_key = wanted.key
WHERE s.device_id = ANY($1::text[]);

-- name: take_sync_event_ids
-- Ids for so many sync events; taken while their devices are locked, so a device's ids count up.
SELECT nextval('sync_event_ids') FROM generate_series(1, $1::bigint);

-- name: device
-- Everything known of a device, and nobody else's until the commit.
SELECT site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_failure_ms, last_errors
FROM devices WHERE device_id = $1 FOR UPDATE;

-- name: put_device
-- Change devices, which `lock_devices` or `add_devices` locked.
UPDATE devices SET
    site = r.a0, agent = r.a1, enrolled_ms = r.a2, last_contact_ms = r.a3, last_refused_ms = r.a4,
    cloned_since_ms = r.a5, conflicts = r.a6, consecutive_failures = r.a7, total_failures = r.a8,
    failing_since_ms = r.a9, last_sync_ms = r.a10, last_success_ms = r.a11, last_failure_ms = r.a12, last_errors = r.a13
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint, a4 bigint, a5 bigint, a6 bigint,
     a7 bigint, a8 bigint, a9 bigint, a10 bigint, a11 bigint, a12 bigint, a13 text, a14 text)
WHERE devices.device_id = r.a14 AND devices.device_id = ANY($2::text[]);

-- name: stream
-- A stream's counters.
SELECT number, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms
FROM streams WHERE device_id = $1 AND stream = $2;

-- name: put_stream
-- Begin streams, or move their counters.
WITH given AS (
    SELECT r.a0 AS device_id, r.a1 AS stream, r.a2 AS watermark, r.a3 AS highest, r.a4 AS stored, r.a5 AS carried,
           r.a6 AS rejected, r.a7 AS conflicts, r.a8 AS first_ms, r.a9 AS last_ms
    FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint, a4 bigint, a5 bigint, a6 bigint,
         a7 bigint, a8 bigint, a9 bigint)
), moved AS (
    UPDATE streams SET
        watermark = given.watermark, highest = given.highest, stored = given.stored, carried = given.carried,
        rejected = given.rejected, conflicts = given.conflicts, last_ms = given.last_ms
    FROM given
    WHERE streams.device_id = given.device_id AND streams.stream = given.stream AND streams.device_id = ANY($2::text[])
    RETURNING streams.device_id, streams.stream
)
INSERT INTO streams (device_id, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms)
SELECT device_id, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms FROM given
WHERE NOT EXISTS (SELECT FROM moved WHERE moved.device_id = given.device_id AND moved.stream = given.stream);

-- name: take_event_ids
-- So many ids, which become visible with this commit and in their order: nobody else takes any until then.
SELECT take_event_ids($1);

-- name: put_arrivals
-- Widen the range of ids of some hours.
INSERT INTO arrivals (hour, first_id, last_id)
SELECT new.hour, new.first, new.last FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (hour, first, last)
ON CONFLICT (hour) DO UPDATE SET
    first_id = least(arrivals.first_id, excluded.first_id), last_id = greatest(arrivals.last_id, excluded.last_id);

-- name: insert_event
-- Store events; a row's first value is minus its place in this commit.
INSERT INTO events (id, device_id, stream, seq, type, learner_id, object_id, occurred_at, boot_id, boottime_ms,
                    clock_synced, data, received_ms, best_ms, quality)
SELECT $2::bigint - r.a0, r.a1, r.a2, r.a3, r.a4, r.a5, r.a6, r.a7, r.a8, r.a9, r.a10, r.a11, r.a12, r.a13, r.a14
FROM json_to_recordset($1::json) AS r (a0 bigint, a1 text, a2 text, a3 bigint, a4 text, a5 text, a6 text, a7 text,
     a8 text, a9 bigint, a10 boolean, a11 text, a12 bigint, a13 bigint, a14 smallint)
ON CONFLICT DO NOTHING;

-- name: stored_versions
-- What is stored under some seqs of a stream.
SELECT e.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM events AS e WHERE e.device_id = $1 AND e.stream = $2 AND e.seq = ANY($3::bigint[]) ORDER BY e.seq;

-- name: carried_versions
-- What some seqs of a stream are accounted for by, though it is stored elsewhere.
SELECT c.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM carried AS c JOIN events AS e ON e.device_id = c.device_id AND e.id = c.event_id
WHERE c.device_id = $1 AND c.stream = $2 AND c.seq = ANY($3::bigint[]) ORDER BY c.seq;

-- name: copies
-- What is stored elsewhere and was first recorded under some seqs of a stream.
SELECT o.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM origins AS o JOIN events AS e ON e.device_id = o.device_id AND e.id = o.event_id
WHERE o.device_id = $1 AND o.stream = $2 AND o.seq = ANY($3::bigint[]) ORDER BY o.seq, e.id;

-- name: has_copies
-- Whether anything stored elsewhere was first recorded in a stream.
SELECT 1 FROM origins WHERE device_id = $1 AND stream = $2 LIMIT 1;

-- name: rejected_versions
-- What was rejected under some seqs of a stream, in the order of arrival.
SELECT seq, code, detail, body FROM rejected
WHERE device_id = $1 AND stream = $2 AND seq = ANY($3::bigint[]) ORDER BY id;

-- name: insert_carried
-- Account for seqs whose events are stored elsewhere.
INSERT INTO carried (device_id, stream, seq, event_id)
SELECT r.a0, r.a1, r.a2, CASE WHEN r.a3 < 0 THEN $2::bigint - r.a3 ELSE r.a3 END
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint)
ON CONFLICT DO NOTHING;

-- name: insert_origin
-- Remember where stored events were first recorded.
INSERT INTO origins (device_id, stream, seq, event_id)
SELECT r.a0, r.a1, r.a2, CASE WHEN r.a3 < 0 THEN $2::bigint - r.a3 ELSE r.a3 END
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint)
ON CONFLICT DO NOTHING;

-- name: insert_rejected
-- Keep what was rejected.
INSERT INTO rejected (device_id, stream, seq, code, detail, body, received_ms)
SELECT r.a0, r.a1, r.a2, r.a3, r.a4, r.a5, r.a6
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 text, a4 text, a5 text, a6 bigint);

-- name: insert_gap
-- Remember missing ranges.
INSERT INTO gaps (device_id, stream, first, last)
SELECT r.a0, r.a1, r.a2, r.a3 FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint)
ON CONFLICT DO NOTHING;

-- name: delete_gap
-- Forget missing ranges.
DELETE FROM gaps AS g USING json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint)
WHERE g.device_id = r.a0 AND g.stream = r.a1 AND g.first = r.a2 AND g.device_id = ANY($2::text[]);

-- name: gap_around
-- The missing range that a seq lies in.
SELECT first, last FROM gaps WHERE device_id = $1 AND stream = $2 AND first <= $3 ORDER BY first DESC LIMIT 1;

-- name: gaps
-- The first missing ranges of a stream.
SELECT first, last FROM gaps WHERE device_id = $1 AND stream = $2 ORDER BY first LIMIT $3;

-- name: best_before
-- The best time of the stored event before a seq.
SELECT best_ms FROM events WHERE device_id = $1 AND stream = $2 AND seq < $3 ORDER BY seq DESC LIMIT 1;

-- name: best_after
-- The best time of the stored event after a seq.
SELECT best_ms FROM events WHERE device_id = $1 AND stream = $2 AND seq > $3 ORDER BY seq LIMIT 1;

-- name: boot
-- When a boot began.
SELECT epoch_ms FROM boots WHERE device_id = $1 AND stream = $2 AND boot_id = $3;

-- name: put_boot
-- Boots were seen alive: each began no later than this, and lived at least so long.
WITH seen AS (
    SELECT r.a0 AS device_id, r.a1 AS stream, r.a2 AS boot_id, min(r.a3) AS epoch_ms, max(r.a4) AS boottime_ms
    FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 text, a3 bigint, a4 bigint) GROUP BY r.a0, r.a1, r.a2
), moved AS (
    UPDATE boots SET
        epoch_ms = least(boots.epoch_ms, seen.epoch_ms), boottime_ms = greatest(boots.boottime_ms, seen.boottime_ms)
    FROM seen
    WHERE boots.device_id = seen.device_id AND boots.stream = seen.stream AND boots.boot_id = seen.boot_id
      AND boots.device_id = ANY($2::text[])
    RETURNING boots.device_id, boots.stream, boots.boot_id
)
INSERT INTO boots (device_id, stream, boot_id, epoch_ms, boottime_ms)
SELECT device_id, stream, boot_id, epoch_ms, boottime_ms FROM seen
WHERE NOT EXISTS (SELECT FROM moved WHERE moved.device_id = seen.device_id AND moved.stream = seen.stream
                                      AND moved.boot_id = seen.boot_id);

-- name: boots_overlap
-- Whether of a boot, as it is now seen alive, and another of the stream the one that began first was still alive after
-- the other began.
SELECT 1
FROM boots AS other LEFT JOIN boots AS known
    ON known.device_id = other.device_id AND known.stream = other.stream AND known.boot_id = $3,
LATERAL (SELECT least($4::bigint, known.epoch_ms) AS epoch_ms, greatest($5::bigint, known.boottime_ms) AS boottime_ms)
    AS this
WHERE other.device_id = $1 AND other.stream = $2 AND other.boot_id <> $3
  AND (this.epoch_ms <= other.epoch_ms AND this.epoch_ms + this.boottime_ms > other.epoch_ms + $6
       OR other.epoch_ms <= this.epoch_ms AND other.epoch_ms + other.boottime_ms > this.epoch_ms + $6)
LIMIT 1;

-- name: insert_sync_event
-- Store sync events.
INSERT INTO sync_events (id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors,
                         received_ms, idempotency_key)
SELECT r.a0, r.a1, r.a2, r.a3, r.a4, r.a5, r.a6, r.a7, r.a8, r.a9
FROM json_to_recordset($1::json) AS r (a0 bigint, a1 text, a2 text, a3 bigint, a4 bigint, a5 bigint, a6 numeric,
     a7 text, a8 bigint, a9 text);

-- name: sync_event_by_key
-- The sync event that was stored under a key.
SELECT id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors, received_ms
FROM sync_events WHERE device_id = $1 AND idempotency_key = $2;

-- name: failures_after
-- A device's failures after a moment: how many, and the oldest.
SELECT count(*), min(at_ms) FROM sync_events WHERE device_id = $1 AND at_ms > $2 AND total_errors > 0;

-- name: insert_crossing
-- A device's streak of failures crossed the alarm: for the worker that sends alerts.
INSERT INTO crossings (device_id, kind, at_ms, consecutive_failures, failing_since_ms, last_errors)
SELECT r.a0, r.a1, r.a2, r.a3, r.a4, r.a5
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 bigint, a3 bigint, a4 bigint, a5 text);

-- name: insert_token
-- New tokens.
INSERT INTO tokens (role, token_hash, device_id, label, created_ms, expires_ms)
SELECT r.a0, r.a1, r.a2, r.a3, r.a4, r.a5
FROM json_to_recordset($1::json) AS r (a0 text, a1 text, a2 text, a3 text, a4 bigint, a5 bigint);

-- name: token_by_hash
-- A token by its hash.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens WHERE token_hash = $1;

-- name: token
-- A token by its id, and nobody else's until the commit.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens WHERE id = $1 FOR UPDATE;

-- name: revoke_token
-- End tokens, each once.
UPDATE tokens SET revoked_ms = r.a0 FROM json_to_recordset($1::json) AS r (a0 bigint, a1 bigint)
WHERE id = r.a1 AND revoked_ms IS NULL;

-- name: refuse_token
-- Tokens that had ended were used.
UPDATE tokens SET last_refused_ms = greatest(last_refused_ms, r.a0)
FROM json_to_recordset($1::json) AS r (a0 bigint, a1 bigint) WHERE id = r.a1;

-- name: live_tokens
-- A device's tokens that work at a moment.
SELECT id FROM tokens
WHERE device_id = $1 AND role = 'device' AND revoked_ms IS NULL AND (expires_ms IS NULL OR expires_ms > $2);

-- name: end_token
-- Give tokens an end, unless they have an earlier one.
UPDATE tokens SET expires_ms = least(expires_ms, r.a0) FROM json_to_recordset($1::json) AS r (a0 bigint, a1 bigint)
WHERE id = r.a1;

-- name: insert_enrollment
-- New enrollment codes.
INSERT INTO enrollments (code_hash, created_ms, expires_ms, uses_left, site, device_id)
SELECT r.a0, r.a1, r.a2, r.a3, r.a4, r.a5
FROM json_to_recordset($1::json) AS r (a0 text, a1 bigint, a2 bigint, a3 bigint, a4 text, a5 text);

-- name: enrollment
-- An enrollment code by its hash, and nobody else's until the commit.
SELECT id, created_ms, expires_ms, uses_left, site, device_id FROM enrollments WHERE code_hash = $1 FOR UPDATE;

-- name: use_enrollment
-- Count codes down.
UPDATE enrollments SET uses_left = uses_left - 1 FROM json_to_recordset($1::json) AS r (a0 bigint) WHERE id = r.a0;

-- name: beat
-- Something small to write.
UPDATE pulse SET beats = beats + 1 WHERE id = 1;
