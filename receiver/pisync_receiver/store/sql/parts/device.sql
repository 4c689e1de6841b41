-- name: device_state
-- The state of a device `d` whose site's settings are `s`, as its place in domain/fleet.py: STATES. A number, because
-- PostgreSQL sorts to group by text.
CASE WHEN d.retired_ms IS NOT NULL THEN 4 WHEN d.last_contact_ms IS NULL THEN 3
     WHEN d.last_contact_ms < :now - coalesce(s.silent_after_ms, :silent_after) THEN 2
     WHEN d.consecutive_failures >= :alarm THEN 1 ELSE 0 END

-- name: incomplete
-- Whether a stream `t` lacks something, or holds dead letters or conflicts. No index: each batch changes these columns, and
-- PostgreSQL would then write the stream's other index entries again. A CASE, because it expects few rows of that.
CASE WHEN t.highest > t.watermark OR t.rejected > 0 OR t.conflicts > 0 THEN 1 ELSE 0 END = 1

-- name: incomplete_streams
-- Whose streams lack something, or hold dead letters or conflicts.
SELECT t.device_id FROM streams AS t WHERE {incomplete}

-- name: is_incomplete
-- Whether a device `d` is among them; a count keeps PostgreSQL from reading every stream.
(SELECT count(*) FROM streams AS t WHERE t.device_id = d.device_id AND {incomplete}) > 0

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
