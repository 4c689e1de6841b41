-- name: device
-- One device.
SELECT device_id, site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM devices WHERE device_id = %(device)s;

-- name: devices
-- Devices by id; with a moment, only those without contact since.
SELECT device_id, site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM devices
WHERE device_id > %(after)s AND (%(site)s::text IS NULL OR site = %(site)s)
  AND (%(silent_since)s::bigint IS NULL OR coalesce(last_contact_ms, 0) < %(silent_since)s)
ORDER BY device_id LIMIT %(limit)s;

-- name: history
-- A device's sync events, newest first.
SELECT id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors, received_ms
FROM sync_events
WHERE device_id = %(device)s AND at_ms >= %(since)s AND at_ms < %(until)s AND (at_ms, id) < (%(at)s, %(id)s)
  AND (%(failed)s::boolean IS NULL OR (total_errors > 0) = %(failed)s)
ORDER BY at_ms DESC, id DESC LIMIT %(limit)s;

-- name: streaks
-- Devices by their streak of failures, the longest first, then the one that fails longest.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE consecutive_failures > 0 AND consecutive_failures >= %(least)s AND consecutive_failures <= %(count)s
  AND (consecutive_failures < %(count)s OR (failing_since_ms, device_id) > (%(failing_since)s, %(after)s))
  AND (%(site)s::text IS NULL OR site = %(site)s)
ORDER BY consecutive_failures DESC, failing_since_ms, device_id LIMIT %(limit)s;

-- name: totals
-- Devices by all their failures, the most first.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE total_failures > 0 AND total_failures >= %(least)s AND total_failures <= %(count)s
  AND (total_failures < %(count)s OR device_id > %(after)s)
  AND (%(site)s::text IS NULL OR site = %(site)s)
ORDER BY total_failures DESC, device_id LIMIT %(limit)s;

-- name: totals_since
-- Devices by their failures since a moment, the most first.
SELECT d.device_id, d.site, d.consecutive_failures, f.failures, d.failing_since_ms, d.last_sync_ms, d.last_success_ms,
       d.last_errors
FROM (SELECT device_id, count(*) AS failures FROM sync_events
      WHERE total_errors > 0 AND at_ms >= %(since)s GROUP BY device_id) AS f
     JOIN devices AS d ON d.device_id = f.device_id
WHERE f.failures >= %(least)s AND f.failures <= %(count)s AND (f.failures < %(count)s OR d.device_id > %(after)s)
  AND (%(site)s::text IS NULL OR d.site = %(site)s)
ORDER BY f.failures DESC, d.device_id LIMIT %(limit)s;

-- name: streams
-- A device's streams, the oldest first.
SELECT number, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms
FROM streams WHERE device_id = %(device)s ORDER BY number;

-- name: gaps
-- The first missing ranges of a stream.
SELECT first, last FROM gaps WHERE device_id = %(device)s AND stream = %(stream)s ORDER BY first LIMIT %(limit)s;

-- name: newest_rejected
-- The newest of what was rejected of a stream.
SELECT seq, code, detail FROM rejected WHERE device_id = %(device)s AND stream = %(stream)s
ORDER BY id DESC LIMIT %(limit)s;

-- name: rejected
-- What was rejected of a device, in the order of arrival.
SELECT id, device_id, stream, seq, code, detail, body, received_ms
FROM rejected WHERE device_id = %(device)s AND id > %(after)s ORDER BY id LIMIT %(limit)s;

-- name: stream_ids
-- The streams of a device, or the one of that name, or those of that name on any device.
SELECT number, device_id, stream FROM streams
WHERE (%(device)s::text IS NULL OR device_id = %(device)s) AND (%(stream)s::text IS NULL OR stream = %(stream)s);

-- name: newest
-- The id of the newest event. Another server shows its part of a commit a moment before this counter counts it.
SELECT last FROM arrival_counter;

-- name: arrived
-- The ids between which everything lies that arrived in some hours.
SELECT min(first_id), max(last_id) FROM arrivals WHERE hour >= %(from)s AND hour <= %(to)s;

-- name: events
-- Events in the order of arrival.
SELECT e.id, e.device_id, d.site, e.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e JOIN devices AS d ON d.device_id = e.device_id
WHERE e.id > %(after)s AND e.id <= %(last)s AND e.received_ms >= %(since)s AND e.received_ms < %(until)s
  AND (%(type)s::text IS NULL OR e.type = %(type)s) AND (%(object)s::text IS NULL OR e.object_id = %(object)s)
  AND (%(site)s::text IS NULL OR d.site = %(site)s)
ORDER BY e.id LIMIT %(limit)s;

-- name: events_of_learner
-- The same of one learner.
SELECT e.id, e.device_id, d.site, e.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e JOIN devices AS d ON d.device_id = e.device_id
WHERE e.learner_id = %(learner)s
  AND e.id > %(after)s AND e.id <= %(last)s AND e.received_ms >= %(since)s AND e.received_ms < %(until)s
  AND (%(type)s::text IS NULL OR e.type = %(type)s) AND (%(object)s::text IS NULL OR e.object_id = %(object)s)
  AND (%(site)s::text IS NULL OR d.site = %(site)s)
  AND (%(device)s::text IS NULL OR e.device_id = %(device)s) AND (%(stream)s::text IS NULL OR e.stream = %(stream)s)
ORDER BY e.id LIMIT %(limit)s;

-- name: events_of_stream
-- The same of one stream.
SELECT e.id, e.device_id, d.site, e.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e JOIN devices AS d ON d.device_id = e.device_id
WHERE e.device_id = %(device)s AND e.stream = %(stream)s
  AND e.id > %(after)s AND e.id <= %(last)s AND e.received_ms >= %(since)s AND e.received_ms < %(until)s
  AND (%(type)s::text IS NULL OR e.type = %(type)s) AND (%(object)s::text IS NULL OR e.object_id = %(object)s)
  AND (%(site)s::text IS NULL OR d.site = %(site)s)
ORDER BY e.id LIMIT %(limit)s;

-- name: device_counts
-- Every device, counted by how it is doing: well, failing, unheard.
SELECT count(*) FILTER (WHERE last_contact_ms IS NOT NULL AND consecutive_failures < %(alarm)s),
       count(*) FILTER (WHERE consecutive_failures >= %(alarm)s),
       count(*) FILTER (WHERE last_contact_ms IS NULL AND consecutive_failures < %(alarm)s)
FROM devices;

-- name: stream_counts
-- Every stream: how many lack something, and how far watermarks are behind.
SELECT count(*) FILTER (WHERE highest > watermark), coalesce(sum(highest - watermark), 0)::bigint
FROM streams;

-- name: tokens
-- Every token, the oldest first.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens ORDER BY id;

-- name: tokens_by_hash
-- The tokens of some hashes.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens WHERE token_hash = ANY(%(hashes)s);

-- name: enrollments
-- Every enrollment code, the oldest first.
SELECT id, created_ms, expires_ms, uses_left, site, device_id FROM enrollments ORDER BY id;
