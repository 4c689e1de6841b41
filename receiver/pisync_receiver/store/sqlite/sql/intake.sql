-- name: device
-- Everything known of a device.
SELECT site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_failure_ms, last_errors
FROM devices WHERE device_id = ?;

-- name: put_device
-- Make or change a device.
INSERT INTO devices (site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
                     consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
                     last_failure_ms, last_errors, device_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (device_id) DO UPDATE SET
    site = excluded.site, agent = excluded.agent, enrolled_ms = excluded.enrolled_ms,
    last_contact_ms = excluded.last_contact_ms, last_refused_ms = excluded.last_refused_ms,
    cloned_since_ms = excluded.cloned_since_ms, conflicts = excluded.conflicts,
    consecutive_failures = excluded.consecutive_failures, total_failures = excluded.total_failures,
    failing_since_ms = excluded.failing_since_ms, last_sync_ms = excluded.last_sync_ms,
    last_success_ms = excluded.last_success_ms, last_failure_ms = excluded.last_failure_ms,
    last_errors = excluded.last_errors;

-- name: stream
-- A stream's counters.
SELECT id, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms
FROM streams WHERE device_id = ? AND stream = ?;

-- name: insert_stream
-- Begin a stream.
INSERT INTO streams (device_id, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms)
VALUES (?1, ?2, 0, 0, 0, 0, 0, 0, ?3, ?3) RETURNING id;

-- name: put_stream
-- Move a stream's counters.
UPDATE streams SET watermark = ?2, highest = ?3, stored = ?4, carried = ?5, rejected = ?6, conflicts = ?7,
    first_ms = ?8, last_ms = ?9
WHERE id = ?1;

-- name: last_event
-- The newest event's id.
SELECT max(id) FROM events;

-- name: insert_event
-- Store one event.
INSERT INTO events (id, stream_id, seq, type, learner_id, object_id, occurred_at, boot_id, boottime_ms, clock_synced,
                    data, received_ms, best_ms, quality)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: put_arrivals
-- Widen an hour's range of ids.
INSERT INTO arrivals (hour, first_id, last_id) VALUES (?, ?, ?)
ON CONFLICT (hour) DO UPDATE SET last_id = excluded.last_id;

-- name: stored_versions
-- What is stored under some seqs of a stream.
SELECT e.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM json_each(?2) AS wanted CROSS JOIN events AS e ON e.stream_id = ?1 AND e.seq = wanted.value;

-- name: carried_versions
-- What some seqs of a stream are accounted for by, though it is stored elsewhere.
SELECT c.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM json_each(?2) AS wanted CROSS JOIN carried AS c ON c.stream_id = ?1 AND c.seq = wanted.value
     CROSS JOIN events AS e ON e.id = c.event_id;

-- name: copies
-- What is stored elsewhere and was first recorded under some seqs of a stream.
SELECT o.seq, e.id, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id, e.boottime_ms, e.data
FROM json_each(?3) AS wanted CROSS JOIN origins AS o ON o.device_id = ?1 AND o.stream = ?2 AND o.seq = wanted.value
     CROSS JOIN events AS e ON e.id = o.event_id;

-- name: has_copies
-- Whether anything stored elsewhere was first recorded in a stream.
SELECT 1 FROM origins WHERE device_id = ? AND stream = ? LIMIT 1;

-- name: rejected_versions
-- What was rejected under some seqs of a stream, in the order of arrival.
SELECT r.seq, r.code, r.detail, r.body
FROM json_each(?2) AS wanted CROSS JOIN rejected AS r ON r.stream_id = ?1 AND r.seq = wanted.value
ORDER BY r.id;

-- name: insert_carried
-- Account for a seq whose event is stored elsewhere.
INSERT INTO carried (stream_id, seq, event_id) VALUES (?, ?, ?);

-- name: insert_origin
-- Remember where a stored event was first recorded.
INSERT INTO origins (device_id, stream, seq, event_id) VALUES (?, ?, ?, ?);

-- name: insert_rejected
-- Keep what was rejected.
INSERT INTO rejected (stream_id, seq, code, detail, body, received_ms) VALUES (?, ?, ?, ?, ?, ?);

-- name: insert_gap
-- Remember a missing range.
INSERT INTO gaps (stream_id, first, last) VALUES (?, ?, ?);

-- name: delete_gap
-- Forget a missing range.
DELETE FROM gaps WHERE stream_id = ? AND first = ?;

-- name: gap_around
-- The missing range that a seq lies in.
SELECT first, last FROM gaps WHERE stream_id = ? AND first <= ? ORDER BY first DESC LIMIT 1;

-- name: gaps
-- The first missing ranges of a stream.
SELECT first, last FROM gaps WHERE stream_id = ? ORDER BY first LIMIT ?;

-- name: best_before
-- The best time of the stored event before a seq.
SELECT best_ms FROM events WHERE stream_id = ? AND seq < ? ORDER BY seq DESC LIMIT 1;

-- name: best_after
-- The best time of the stored event after a seq.
SELECT best_ms FROM events WHERE stream_id = ? AND seq > ? ORDER BY seq LIMIT 1;

-- name: boot
-- When a boot began.
SELECT epoch_ms FROM boots WHERE stream_id = ? AND boot_id = ?;

-- name: put_boot
-- A boot was seen alive: it began no later than this, and lived at least so long.
INSERT INTO boots (stream_id, boot_id, epoch_ms, boottime_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (stream_id, boot_id) DO UPDATE SET
    epoch_ms = min(epoch_ms, excluded.epoch_ms), boottime_ms = max(boottime_ms, excluded.boottime_ms);

-- name: boots_overlap
-- Whether of a boot, as it is now seen alive, and another of the stream the one that began first was still alive after
-- the other began.
WITH this (epoch_ms, boottime_ms) AS (
    SELECT min(?3, ifnull((SELECT epoch_ms FROM boots WHERE stream_id = ?1 AND boot_id = ?2), ?3)),
           max(?4, ifnull((SELECT boottime_ms FROM boots WHERE stream_id = ?1 AND boot_id = ?2), ?4)))
SELECT 1 FROM this JOIN boots AS other ON other.stream_id = ?1 AND other.boot_id <> ?2
WHERE this.epoch_ms <= other.epoch_ms AND this.epoch_ms + this.boottime_ms > other.epoch_ms + ?5
   OR other.epoch_ms <= this.epoch_ms AND other.epoch_ms + other.boottime_ms > this.epoch_ms + ?5
LIMIT 1;

-- name: last_sync_event
-- The newest sync event's id.
SELECT max(id) FROM sync_events;

-- name: insert_sync_event
-- Store one sync event.
INSERT INTO sync_events (id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors,
                         received_ms, idempotency_key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: sync_event_by_key
-- The sync event that was stored under a key.
SELECT id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors, received_ms
FROM sync_events WHERE device_id = ? AND idempotency_key = ?;

-- name: failures_after
-- A device's failures after a moment: how many, and the oldest.
SELECT count(*), min(at_ms) FROM sync_events WHERE device_id = ? AND at_ms > ? AND total_errors > 0;

-- name: insert_token
-- A new token.
INSERT INTO tokens (role, token_hash, device_id, label, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?);

-- name: token_by_hash
-- A token by its hash.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens WHERE token_hash = ?;

-- name: token
-- A token by its id.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens WHERE id = ?;

-- name: revoke_token
-- End a token, once.
UPDATE tokens SET revoked_ms = ? WHERE id = ? AND revoked_ms IS NULL;

-- name: refuse_token
-- A token that had ended was used.
UPDATE tokens SET last_refused_ms = max(ifnull(last_refused_ms, 0), ?) WHERE id = ?;

-- name: live_tokens
-- A device's tokens that work at a moment.
SELECT id FROM tokens
WHERE device_id = ?1 AND role = 'device' AND revoked_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?2);

-- name: end_token
-- Give a token an end, unless it has an earlier one.
UPDATE tokens SET expires_ms = min(ifnull(expires_ms, ?1), ?1) WHERE id = ?2;

-- name: insert_enrollment
-- A new enrollment code.
INSERT INTO enrollments (code_hash, created_ms, expires_ms, uses_left, site, device_id) VALUES (?, ?, ?, ?, ?, ?);

-- name: enrollment
-- An enrollment code by its hash.
SELECT id, created_ms, expires_ms, uses_left, site, device_id FROM enrollments WHERE code_hash = ?;

-- name: use_enrollment
-- Count a code down.
UPDATE enrollments SET uses_left = uses_left - 1 WHERE id = ?;

-- name: beat
-- Something small to write.
UPDATE pulse SET beats = beats + 1 WHERE id = 1;
