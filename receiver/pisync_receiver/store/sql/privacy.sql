-- name: timeline
-- A learner's events by their best time, the newest first.
SELECT * FROM events INDEXED BY events_by_learner
WHERE learner_id = :learner AND (learner_home = :home OR :home IS NULL)
  AND best_ms >= :since AND best_ms < :until AND (best_ms, id) < (:best, :id)
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
ORDER BY best_ms DESC, id DESC LIMIT :limit;

-- name: erasure_keys
-- The keys of the hashes of erased learners; none until a learner was erased.
SELECT value FROM secrets WHERE name >= 'erasure ' AND name < 'erasure!' AND EXISTS (SELECT 1 FROM erased) ORDER BY name;

-- name: all_erasure_keys
-- The same, also before a learner was erased.
SELECT value FROM secrets WHERE name >= 'erasure ' AND name < 'erasure!' ORDER BY name;

-- name: erased_of
-- Erased learners with some ids.
SELECT learner FROM erased WHERE id IN (SELECT value FROM json_each(:ids));

-- name: erased_by_id
-- What is known of erased learners with some ids.
SELECT learner, id, receipt, asked_ms, done_ms, events, rejected FROM erased
WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY learner;

-- name: all_erased
-- Every erased learner.
SELECT learner, id, receipt, asked_ms, done_ms, events, rejected FROM erased
WHERE learner > :after ORDER BY learner LIMIT :limit;

-- name: add_secret
-- Keep a key, unless one with its name is there.
INSERT INTO secrets (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING;

-- name: add_erased
-- Remember an erased learner, unless it is remembered.
INSERT INTO erased (learner, id, receipt, asked_ms, done_ms, events, rejected)
VALUES (:learner, :id, :receipt, :asked_ms, NULL, 0, 0) ON CONFLICT (learner) DO NOTHING;

-- name: count_erased
-- Count what was erased of a learner.
UPDATE erased SET events = events + :events, rejected = rejected + :rejected WHERE learner = :learner;

-- name: unfinished_erasures
-- Learners who are being erased.
SELECT learner, id, receipt, asked_ms, done_ms, events, rejected FROM erased WHERE done_ms IS NULL;

-- name: end_erasure
-- Nothing of a learner is left.
UPDATE erased SET done_ms = :now WHERE learner = :learner AND done_ms IS NULL;

-- name: homes_of_learner
-- The homes that a learner's id occurs under, and how many events each has.
SELECT learner_home, count(*) FROM events INDEXED BY events_by_learner
WHERE learner_id = :learner GROUP BY learner_home ORDER BY learner_home LIMIT :limit;

-- name: next_learners
-- Learners' ids after another, from the index alone.
SELECT DISTINCT learner_id FROM events INDEXED BY events_by_learner
WHERE learner_id > :after ORDER BY learner_id LIMIT :limit;

-- name: events_to_erase
-- Some events of a learner, in any order.
SELECT id, device_id, stream, seq, type, site, object_id, occurred_at, recorded_at, boot_id, boottime_ms, received_ms,
       best_ms, quality
FROM events INDEXED BY events_by_learner
WHERE learner_id = :learner AND (learner_home = :home OR (learner_home IS NULL AND :home IS NULL))
LIMIT :limit;

-- name: rejected_naming
-- Of the next rejected events and conflicting versions, those whose text may name a learner: it has the id, or an
-- escape.
SELECT device_id, stream, seq, content, body
FROM (SELECT device_id, stream, seq, content, body FROM rejected
      WHERE (device_id, stream, seq, content) > (:device, :stream, :seq, :content)
      ORDER BY device_id, stream, seq, content LIMIT :limit) AS next
WHERE replace(body, :learner, '') <> body OR replace(body, '\', '') <> body OR :learner IS NULL;

-- name: rejected_after
-- Where the next rejected events and conflicting versions end.
SELECT device_id, stream, seq, content
FROM (SELECT device_id, stream, seq, content FROM rejected
      WHERE (device_id, stream, seq, content) > (:device, :stream, :seq, :content)
      ORDER BY device_id, stream, seq, content LIMIT :limit) AS next
ORDER BY device_id DESC, stream DESC, seq DESC, content DESC LIMIT 1;

-- name: empty_rejected
-- Empty a rejected event or a conflicting version; its seq stays accounted for.
UPDATE rejected SET content = :hidden, body = :body, detail = ''
WHERE device_id = :device AND stream = :stream AND seq = :seq AND content = :content;
