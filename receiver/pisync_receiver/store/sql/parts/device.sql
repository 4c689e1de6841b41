-- name: device_state
-- The state of a device `d` whose site's settings are `s`, as its place in domain/fleet.py: STATES. A number, because
-- PostgreSQL sorts to group by text.
CASE WHEN d.retired_ms IS NOT NULL THEN 4 WHEN d.last_contact_ms IS NULL THEN 3
     WHEN d.last_contact_ms < :now - coalesce(s.silent_after_ms, :silent_after) THEN 2
     WHEN d.consecutive_failures >= :alarm THEN 1 ELSE 0 END

-- name: incomplete_streams
-- Whose streams lack something, hold dead letters or conflicts.
SELECT device_id FROM streams WHERE (highest > watermark OR rejected > 0 OR conflicts > 0)

-- name: device_filter
-- Whether a device `d` whose site's settings are `s` is wanted. Both engines fold the letters of ASCII alone.
(d.site = :site OR :site IS NULL) AND (d.site IS NULL OR CAST(:without_site AS INTEGER) IS NULL)
  AND (d.site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
  AND ({device_state} = :state OR :state IS NULL)
  AND ((coalesce(d.last_contact_ms, 0) < :silent_since AND d.retired_ms IS NULL) OR :silent_since IS NULL)
  AND ((d.device_id IN ({incomplete_streams})) = (:incomplete > 0) OR :incomplete IS NULL)
  AND ((d.cloned_since_ms IS NOT NULL) = (:cloned > 0) OR :cloned IS NULL)
  AND ({device_text} LIKE :search ESCAPE '\' OR {device_text} LIKE :search_title ESCAPE '\'
       OR {device_text} LIKE :search_upper ESCAPE '\' OR :search IS NULL)

-- name: device_text
-- What a search looks through.
lower(d.device_id || ' ' || coalesce(d.label, '') || ' ' || coalesce(d.site, ''))
