-- name: device_shown
-- A device, and what its state is judged by.
SELECT d.*, s.silent_after_ms, {is_incomplete}
FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site WHERE d.device_id = :device;

-- name: devices
-- Devices by id.
SELECT d.*, s.silent_after_ms, {is_incomplete}
FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site
WHERE d.device_id > :after AND {device_filter}
ORDER BY d.device_id LIMIT :limit;

-- name: devices_ranked
-- Devices by a rank: a number, then a name, then the id. A contact later than the moment of the first page counts as one
-- at it, so that the last pages end.
SELECT d.*, s.silent_after_ms, {is_incomplete}, r.number, r.name
FROM (SELECT ranked.* FROM (
        SELECT d.device_id AS ranked_id,
               CASE CAST(:sort AS TEXT) WHEN 'failures' THEN -d.consecutive_failures WHEN 'last_contact' THEN
                    CASE WHEN d.last_contact_ms > :now THEN CAST(:now AS BIGINT)
                         ELSE coalesce(d.last_contact_ms, -9223372036854775807) END
                    ELSE 0 END AS number,
               CASE CAST(:sort AS TEXT) WHEN 'site' THEN coalesce(d.site, '') ELSE '' END AS name
        FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site WHERE {device_filter}) AS ranked
      WHERE (number, name, ranked_id) > (:number, :name, :after)
      ORDER BY number, name, ranked_id LIMIT :limit) AS r
     JOIN devices AS d ON d.device_id = r.ranked_id LEFT JOIN sites AS s ON s.site = d.site
ORDER BY r.number, r.name, r.ranked_id;

-- name: devices_risen
-- Devices whose rank may have risen since a moment, by id: those that failed again, or were changed by an admin.
SELECT d.*, s.silent_after_ms, {is_incomplete}
FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site
WHERE d.device_id > :after AND {device_filter}
  AND CASE CAST(:sort AS TEXT) WHEN 'site' THEN d.changed_ms >= :started
           ELSE d.device_id IN (SELECT device_id FROM sync_events INDEXED BY sync_events_by_arrival
                                WHERE received_ms >= :started AND total_errors > 0) END
ORDER BY d.device_id LIMIT :limit;

-- name: devices_counted
-- How many devices a filter finds.
SELECT count(*) FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site WHERE {device_filter};

-- name: site_counts
-- The devices of each site, counted by state; those that are well are the rest.
SELECT d.site, s.silent_after_ms, count(*), count(*) FILTER (WHERE {device_state} = 1),
       count(*) FILTER (WHERE {device_state} = 2), count(*) FILTER (WHERE {device_state} = 3), count(d.retired_ms),
       count(d.cloned_since_ms), max(d.last_contact_ms)
FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site
WHERE (d.site = :site OR :site IS NULL) AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
GROUP BY 1, 2;

-- name: restless_sites
-- Sites, and earlier sites, of devices that failed or were changed since a moment, and sites that were changed.
SELECT d.site, d.site_history FROM devices AS d
WHERE d.changed_ms >= :started OR d.device_id IN (SELECT device_id FROM sync_events INDEXED BY sync_events_by_arrival
                                                  WHERE received_ms >= :started AND total_errors > 0)
UNION
SELECT site, NULL FROM sites WHERE changed_ms >= :started;

-- name: troubled_devices
-- The devices in trouble: site, state, since when, and the errors of the newest failure.
SELECT site, state, CASE state WHEN 2 THEN last_contact_ms ELSE failing_since_ms END, last_errors
FROM (SELECT d.site, d.last_contact_ms, d.failing_since_ms, d.last_errors, {device_state} AS state
      FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site
      WHERE (d.site = :site OR :site IS NULL)
        AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)) AS judged
WHERE state IN (1, 2);

-- name: site_lacks
-- The devices of each site of which something is missing, was rejected or conflicts, and how many events are missing; a
-- sum of floats cannot overflow.
SELECT d.site, count(DISTINCT t.device_id),
       sum(CAST(t.highest - t.stored - t.carried - t.rejected AS DOUBLE PRECISION))
FROM streams AS t JOIN devices AS d ON d.device_id = t.device_id
WHERE {incomplete}
  AND (d.site = :site OR :site IS NULL) AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
GROUP BY d.site;

-- name: incomplete_devices
-- Devices of which something is missing, was rejected or conflicts, by id.
SELECT d.device_id, d.site, d.label, l.missing, l.rejected, l.conflicts, d.cloned_since_ms
FROM (SELECT t.device_id AS lacking, sum(t.rejected) AS rejected, sum(t.conflicts) AS conflicts,
             sum(CAST(t.highest - t.stored - t.carried - t.rejected AS DOUBLE PRECISION)) AS missing
      FROM streams AS t WHERE t.device_id > :after AND {incomplete} GROUP BY t.device_id) AS l
     JOIN devices AS d ON d.device_id = l.lacking
WHERE (d.site = :site OR :site IS NULL) AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY d.device_id LIMIT :limit;

-- name: site_settings
-- What an admin set for a site.
SELECT silent_after_ms FROM sites WHERE site = :site;

-- name: put_site
-- Set when the devices of a site count as silent.
INSERT INTO sites (site, silent_after_ms, changed_ms) VALUES (:site, :silent_after, :at)
ON CONFLICT (site) DO UPDATE SET silent_after_ms = excluded.silent_after_ms, changed_ms = excluded.changed_ms;

-- name: net_changes
-- Devices whose newest state since a moment is not the one before it, by site and states; those of most devices first.
SELECT last.site, first.before, last.state, count(*), min(last.since_ms)
FROM (SELECT min(id) AS first_id, max(id) AS last_id FROM transitions WHERE at_ms >= :since GROUP BY device_id) AS ends
     JOIN transitions AS first ON first.id = ends.first_id JOIN transitions AS last ON last.id = ends.last_id
WHERE first.before <> last.state
  AND (last.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
GROUP BY last.site, first.before, last.state
ORDER BY count(*) DESC, last.site, first.before, last.state LIMIT :limit;

-- name: day_sums
-- Sync runs, failed runs, files and events of a day.
SELECT CASE what WHEN 'run' THEN name ELSE 'events' END, sum(count) FROM sums
WHERE what IN ('run', 'type') AND day = :day
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
GROUP BY 1;

-- name: delay_sums
-- Events by how long they took to arrive, since a day.
SELECT name, sum(count) FROM sums
WHERE what = 'delay' AND day >= :day AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
GROUP BY name HAVING sum(count) > 0;
