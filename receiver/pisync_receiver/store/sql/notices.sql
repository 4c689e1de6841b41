-- name: changed_states
-- Devices, or some of them, whose state is not the one they were last seen in. A device leaves silence by a contact or by
-- another limit, and not because the receiver's clock was set back.
SELECT device_id, site, before, state,
       CASE state WHEN 'silent' THEN last_contact_ms WHEN 'failing' THEN failing_since_ms WHEN 'new' THEN enrolled_ms
                  WHEN 'retired' THEN retired_ms ELSE last_success_ms END,
       last_errors, silent_at_ms, last_contact_ms > noted_ms
FROM (SELECT d.*, w.state AS before, w.silent_at_ms AS noted_ms,
             CASE {device_state} WHEN 0 THEN 'well' WHEN 1 THEN 'failing' WHEN 2 THEN 'silent' WHEN 3 THEN 'new'
                  ELSE 'retired' END AS state,
             d.last_contact_ms + coalesce(s.silent_after_ms, :silent_after) AS silent_at_ms
      FROM devices AS d LEFT JOIN sites AS s ON s.site = d.site LEFT JOIN watched AS w ON w.device_id = d.device_id
      WHERE d.device_id IN (SELECT value FROM json_each(:devices)) OR :devices IS NULL) AS judged
WHERE before IS NULL
   OR (before <> state AND (before <> 'silent' OR state = 'retired' OR silent_at_ms <> coalesce(noted_ms, 0)))
ORDER BY device_id LIMIT :limit;

-- name: alert_backlog
-- How many transitions no notice has covered, when the first of them and the first to silence were noticed, when the
-- newest notice of such and the newest daily digest were made, and how many notices their services have yet to accept.
SELECT (SELECT count(*) FROM transitions WHERE notified_ms IS NULL),
       (SELECT min(at_ms) FROM transitions WHERE notified_ms IS NULL AND state <> 'silent'),
       (SELECT min(at_ms) FROM transitions WHERE notified_ms IS NULL AND state = 'silent'),
       (SELECT max(made_ms) FROM notices WHERE target = 'log' AND kind <> 'daily' AND made_ms > :since),
       (SELECT max(made_ms) FROM notices WHERE target = 'log' AND kind = 'daily'),
       (SELECT count(*) FROM notices WHERE sent_ms IS NULL AND target IN (SELECT value FROM json_each(:targets)));

-- name: pending_transitions
-- The first transitions that no notice has covered.
SELECT id, device_id, site, before, state, at_ms, since_ms, errors FROM transitions
WHERE notified_ms IS NULL ORDER BY id LIMIT :limit;

-- name: cover_transitions
-- A notice covers these transitions now.
UPDATE transitions SET notified_ms = :now WHERE notified_ms IS NULL AND id IN (SELECT value FROM json_each(:ids));

-- name: add_notice
-- One notice for one target.
INSERT INTO notices (target, service, kind, title, body, made_ms)
VALUES (:target, :service, :kind, :title, :body, :now);

-- name: last_daily
-- When the last daily digest was made.
SELECT max(made_ms) FROM notices WHERE target = 'log' AND kind = 'daily';

-- name: next_notice
-- The oldest notice for a service; those that it has refused for long come after the others.
SELECT id, title, body, claimed_until_ms FROM notices WHERE target = :target AND sent_ms IS NULL
ORDER BY made_ms < :long_ago, id LIMIT 1;

-- name: has_unsent
-- Whether a service has yet to accept a notice.
SELECT id FROM notices WHERE target = :target AND sent_ms IS NULL LIMIT 1;

-- name: claim_notice
-- A receiver is sending a notice and has until then; NULL gives it back.
UPDATE notices SET claimed_until_ms = :until WHERE id = :id;

-- name: mark_sent
-- The service accepted the notice.
UPDATE notices SET sent_ms = :now, claimed_until_ms = NULL WHERE id = :id;

-- name: unsent_before
-- How many notices of long ago no service has accepted.
SELECT count(*) FROM notices WHERE made_ms < :before AND sent_ms IS NULL;

-- name: delete_notices
-- Delete notices of long ago.
DELETE FROM notices WHERE made_ms < :before;

-- name: delete_transitions
-- Delete transitions of long ago.
DELETE FROM transitions WHERE at_ms < :before;

-- name: transitions
-- Transitions, the newest first.
SELECT id, at_ms, device_id, site, before, state, since_ms FROM transitions
WHERE id < :below AND at_ms >= :since AND (device_id = :device OR :device IS NULL) AND (site = :site OR :site IS NULL)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY id DESC LIMIT :limit;

-- name: notices
-- Notices, the newest first.
SELECT id, service, kind, title, body, made_ms, sent_ms FROM notices
WHERE id < :below AND made_ms >= :since ORDER BY id DESC LIMIT :limit;
