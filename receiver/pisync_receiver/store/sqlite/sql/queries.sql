-- name: device
-- One device.
SELECT device_id, site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM devices WHERE device_id = :device;

-- name: devices
-- Devices by id; with a moment, only those without contact since.
SELECT device_id, site, agent, enrolled_ms, last_contact_ms, last_refused_ms, cloned_since_ms, conflicts,
       consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM devices
WHERE device_id > :after AND (:site IS NULL OR site = :site)
  AND (:silent_since IS NULL OR ifnull(last_contact_ms, 0) < :silent_since)
ORDER BY device_id LIMIT :limit;

-- name: history
-- A device's sync events, newest first.
SELECT id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, errors, received_ms
FROM sync_events
WHERE device_id = :device AND at_ms >= :since AND at_ms < :until AND (at_ms, id) < (:at, :id)
  AND (:failed IS NULL OR (total_errors > 0) = :failed)
ORDER BY at_ms DESC, id DESC LIMIT :limit;

-- name: streaks
-- Devices by their streak of failures, the longest first, then the one that fails longest.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE consecutive_failures > 0 AND consecutive_failures >= :least AND consecutive_failures <= :count
  AND (consecutive_failures < :count OR (failing_since_ms, device_id) > (:failing_since, :after))
  AND (:site IS NULL OR site = :site)
ORDER BY consecutive_failures DESC, failing_since_ms, device_id LIMIT :limit;

-- name: totals
-- Devices by all their failures, the most first.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE total_failures >= :least AND total_failures <= :count
  AND (total_failures < :count OR device_id > :after)
  AND (:site IS NULL OR site = :site)
ORDER BY total_failures DESC, device_id LIMIT :limit;

-- name: totals_since
-- Devices by their failures since a moment, the most first.
SELECT device_id, site, consecutive_failures, failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM (SELECT device_id AS failing, count(*) AS failures FROM sync_events INDEXED BY sync_events_failed
      WHERE total_errors > 0 AND at_ms >= :since GROUP BY device_id)
     JOIN devices ON device_id = failing
WHERE failures >= :least AND failures <= :count AND (failures < :count OR device_id > :after)
  AND (:site IS NULL OR site = :site)
ORDER BY failures DESC, device_id LIMIT :limit;

-- name: streams
-- A device's streams, the oldest first.
SELECT id, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms
FROM streams WHERE device_id = :device ORDER BY id;

-- name: gaps
-- The first missing ranges of a stream.
SELECT first, last FROM gaps WHERE stream_id = :number ORDER BY first LIMIT :limit;

-- name: newest_rejected
-- The newest of what was rejected of a stream.
SELECT seq, code, detail FROM rejected WHERE stream_id = :number ORDER BY id DESC LIMIT :limit;

-- name: rejected
-- What was rejected of a device, in the order of arrival.
SELECT r.id, s.device_id, s.stream, r.seq, r.code, r.detail, r.body, r.received_ms
FROM streams AS s JOIN rejected AS r ON r.stream_id = s.id
WHERE s.device_id = :device AND r.id > :after ORDER BY r.id LIMIT :limit;

-- name: stream_ids
-- The streams of a device, or the one of that name, or those of that name on any device.
SELECT id, device_id, stream FROM streams WHERE (:device IS NULL OR device_id = :device) AND (:stream IS NULL OR stream = :stream);

-- name: newest
-- The id of the newest event.
SELECT coalesce(max(id), 0) FROM events;

-- name: arrived
-- The ids between which everything lies that arrived in some hours.
SELECT min(first_id), max(last_id) FROM arrivals WHERE hour >= :from AND hour <= :to;

-- name: events
-- Events in the order of arrival.
SELECT e.id, s.device_id, d.site, s.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e CROSS JOIN streams AS s ON s.id = e.stream_id CROSS JOIN devices AS d ON d.device_id = s.device_id
WHERE e.id > :after AND e.id <= :last AND e.received_ms >= :since AND e.received_ms < :until
  AND (:type IS NULL OR e.type = :type) AND (:object IS NULL OR e.object_id = :object)
  AND (:site IS NULL OR d.site = :site)
ORDER BY e.id LIMIT :limit;

-- name: events_of_learner
-- The same of one learner.
SELECT e.id, s.device_id, d.site, s.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e INDEXED BY events_by_learner CROSS JOIN streams AS s ON s.id = e.stream_id
     CROSS JOIN devices AS d ON d.device_id = s.device_id
WHERE e.learner_id = :learner AND e.id > :after AND e.id <= :last AND e.received_ms >= :since AND e.received_ms < :until
  AND (:type IS NULL OR e.type = :type) AND (:object IS NULL OR e.object_id = :object)
  AND (:device IS NULL OR s.device_id = :device) AND (:stream IS NULL OR s.stream = :stream)
  AND (:site IS NULL OR d.site = :site)
ORDER BY e.id LIMIT :limit;

-- name: events_of_stream
-- The same of one stream.
SELECT e.id, s.device_id, d.site, s.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events AS e INDEXED BY events_by_stream CROSS JOIN streams AS s ON s.id = e.stream_id
     CROSS JOIN devices AS d ON d.device_id = s.device_id
WHERE e.stream_id = :number AND e.id > :after AND e.id <= :last
  AND e.received_ms >= :since AND e.received_ms < :until
  AND (:type IS NULL OR e.type = :type) AND (:object IS NULL OR e.object_id = :object)
  AND (:site IS NULL OR d.site = :site)
ORDER BY e.id LIMIT :limit;

-- name: device_counts
-- Every device, counted by how it is doing: well, failing, unheard.
SELECT count(*) FILTER (WHERE last_contact_ms IS NOT NULL AND consecutive_failures < :alarm),
       count(*) FILTER (WHERE consecutive_failures >= :alarm),
       count(*) FILTER (WHERE last_contact_ms IS NULL AND consecutive_failures < :alarm)
FROM devices;

-- name: stream_counts
-- Every stream: how many lack something, and how far watermarks are behind.
SELECT count(*) FILTER (WHERE highest > watermark), ifnull(sum(highest - watermark), 0)
FROM streams;

-- name: tokens
-- Every token, the oldest first.
SELECT id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM tokens ORDER BY id;

-- name: tokens_by_hash
-- The tokens of some hashes.
SELECT tokens.id, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms
FROM json_each(:hashes) AS wanted CROSS JOIN tokens ON token_hash = wanted.value;

-- name: enrollments
-- Every enrollment code, the oldest first.
SELECT id, created_ms, expires_ms, uses_left, site, device_id FROM enrollments ORDER BY id;
