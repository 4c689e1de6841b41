-- name: devices_by_id
-- Some devices.
SELECT * FROM devices WHERE device_id IN (SELECT value FROM json_each(:devices));

-- name: history
-- A device's sync events, newest first.
SELECT * FROM sync_events
WHERE device_id = :device AND at_ms >= :since AND at_ms < :until AND (at_ms, id) < (:at, :id)
  AND ((total_errors > 0) = (:failed > 0) OR :failed IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY at_ms DESC, id DESC LIMIT :limit;

-- name: newest_arrival
-- When the newest sync event arrived.
SELECT max(received_ms) FROM sync_events;

-- name: streaks
-- Devices by their streak of failures, the longest first, then by how long they have been failing.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE consecutive_failures > 0 AND consecutive_failures >= :least AND consecutive_failures <= :count
  AND (consecutive_failures < :count OR (failing_since_ms, device_id) > (:failing_since, :after))
  AND retired_ms IS NULL AND (site = :site OR :site IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY consecutive_failures DESC, failing_since_ms, device_id LIMIT :limit;

-- name: totals
-- Devices by all their failures, the most first.
SELECT device_id, site, consecutive_failures, total_failures, failing_since_ms, last_sync_ms, last_success_ms,
       last_errors
FROM devices
WHERE total_failures > 0 AND total_failures >= :least AND total_failures <= :count
  AND (total_failures < :count OR device_id > :after)
  AND retired_ms IS NULL AND (site = :site OR :site IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY total_failures DESC, device_id LIMIT :limit;

-- name: totals_since
-- Devices by their failures since a moment, the most first.
SELECT device_id, site, consecutive_failures, failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM (SELECT device_id AS failing, count(*) AS failures FROM sync_events INDEXED BY sync_events_failed_by_time
      WHERE total_errors > 0 AND at_ms >= :since GROUP BY device_id) AS f
     JOIN devices ON device_id = failing
WHERE failures >= :least AND failures <= :count AND (failures < :count OR device_id > :after)
  AND retired_ms IS NULL AND (site = :site OR :site IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY failures DESC, device_id LIMIT :limit;

-- name: risen
-- Devices that keep failing and failed again since a moment, by id.
SELECT device_id, site, consecutive_failures, failures, failing_since_ms, last_sync_ms, last_success_ms, last_errors
FROM (SELECT d.*, CASE WHEN CAST(:since AS BIGINT) IS NULL THEN d.total_failures ELSE
             (SELECT count(*) FROM sync_events AS e
              WHERE e.device_id = d.device_id AND e.total_errors > 0 AND e.at_ms >= :since) END AS failures
      FROM (SELECT DISTINCT device_id FROM sync_events INDEXED BY sync_events_by_arrival
            WHERE received_ms > :started AND total_errors > 0) AS again
           CROSS JOIN devices AS d WHERE d.device_id = again.device_id) AS failing
WHERE device_id > :after
  AND CASE CAST(:mode AS TEXT) WHEN 'consecutive' THEN consecutive_failures ELSE failures END >= :least
  AND retired_ms IS NULL AND (site = :site OR :site IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY device_id LIMIT :limit;

-- name: streams
-- A device's streams, the oldest first.
SELECT * FROM streams WHERE device_id = :device ORDER BY first_ms, stream LIMIT :limit;

-- name: rejected
-- What was rejected of a device, by stream and order of arrival.
SELECT stream, received_ms, seq, content, code, detail, substr(body, 1, CAST(:longest AS INTEGER)) FROM rejected
WHERE device_id = :device AND (stream, received_ms, seq, content) > (:stream, :received, :seq, :content)
ORDER BY stream, received_ms, seq, content LIMIT :limit;

-- name: arrived
-- The ids between which everything lies that arrived in some hours.
SELECT min(first_id), max(last_id) FROM arrivals WHERE hour >= :first AND hour <= :last;

-- name: events
-- Events in the order of arrival.
SELECT * FROM events NOT INDEXED
WHERE id > :after AND id <= :last AND received_ms >= :since AND received_ms < :until
  AND best_ms >= :occurred_since AND best_ms < :occurred_until
  AND (stream = :stream OR :stream IS NULL)
  AND (type = :type OR :type IS NULL) AND (object_id = :object OR :object IS NULL)
  AND (site = :site OR :site IS NULL) AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY id LIMIT :limit;

-- name: events_of_learner
-- The same for one learner.
SELECT * FROM events INDEXED BY events_by_learner
WHERE learner_id = :learner AND id > :after AND id <= :last AND received_ms >= :since AND received_ms < :until
  AND best_ms >= :occurred_since AND best_ms < :occurred_until
  AND (device_id = :device OR :device IS NULL) AND (stream = :stream OR :stream IS NULL)
  AND (type = :type OR :type IS NULL) AND (object_id = :object OR :object IS NULL)
  AND (site = :site OR :site IS NULL) AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY id LIMIT :limit;

-- name: events_of_device
-- The same for one device.
SELECT * FROM events INDEXED BY events_by_device
WHERE device_id = :device AND id > :after AND id <= :last AND received_ms >= :since AND received_ms < :until
  AND best_ms >= :occurred_since AND best_ms < :occurred_until
  AND (stream = :stream OR :stream IS NULL)
  AND (type = :type OR :type IS NULL) AND (object_id = :object OR :object IS NULL)
  AND (site = :site OR :site IS NULL) AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY id LIMIT :limit;

-- name: stream_counts
-- Every stream: how many lack something, and how far watermarks are behind; a sum of floats cannot overflow.
SELECT count(*) FILTER (WHERE highest > watermark), coalesce(sum(CAST(highest - watermark AS DOUBLE PRECISION)), 0)
FROM streams;

-- name: tokens_by_hash
-- The tokens with some hashes.
SELECT * FROM tokens WHERE token_hash IN (SELECT value FROM json_each(:hashes));

-- name: codes
-- Every enrollment code, the oldest first.
SELECT * FROM enrollments ORDER BY id;

-- name: code_devices
-- The first devices that each enrollment code let in.
SELECT code_id, device_id
FROM (SELECT code_id, device_id, row_number() OVER (PARTITION BY code_id ORDER BY device_id) AS place
      FROM devices WHERE code_id IS NOT NULL) AS let_in
WHERE place <= :each ORDER BY code_id, device_id;

-- name: count_old
-- How many events and sync events arrived before a moment; `arrivals` bounds the search.
SELECT (SELECT count(*) FROM events NOT INDEXED
        WHERE received_ms < :before AND id <= coalesce((SELECT max(last_id) FROM arrivals WHERE hour <= :hour), 0)
          AND (type = :type OR :type IS NULL)),
       (SELECT count(*) FROM sync_events INDEXED BY sync_events_by_arrival
        WHERE received_ms < :before AND :type IS NULL);

-- name: count_old_types
-- The same events by type, the most frequent first.
SELECT type, count(*) FROM events NOT INDEXED
WHERE received_ms < :before AND id <= coalesce((SELECT max(last_id) FROM arrivals WHERE hour <= :hour), 0)
  AND (type = :type OR :type IS NULL)
GROUP BY type ORDER BY count(*) DESC, type LIMIT :limit;
