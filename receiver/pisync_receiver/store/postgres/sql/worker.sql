-- name: schema
-- Whether the tables are there that a worker needs.
SELECT to_regclass('positions') IS NOT NULL AND to_regclass('notices') IS NOT NULL AND to_regclass('marks') IS NOT NULL;

-- name: bounds
-- In a transaction whose worker may vanish: how long a statement may take, and how long the rest may.
SELECT set_config('statement_timeout', '60s', true), set_config('idle_in_transaction_session_timeout', '120s', true);

-- name: begin_at
-- A consumer that has no position yet starts here.
INSERT INTO positions (consumer, event_id, moved_ms) VALUES (%(consumer)s, %(event_id)s, %(now)s)
ON CONFLICT (consumer) DO NOTHING;

-- name: set_back
-- Hand on again, or skip: from here.
INSERT INTO positions (consumer, event_id, moved_ms) VALUES (%(consumer)s, %(event_id)s, %(now)s)
ON CONFLICT (consumer) DO UPDATE SET event_id = excluded.event_id, until_id = NULL, moved_ms = excluded.moved_ms;

-- name: newest
-- The id of the newest event.
SELECT last FROM arrival_counter;

-- name: lag
-- How many events a consumer has not been handed.
SELECT greatest(last - (SELECT event_id FROM positions WHERE consumer = %(consumer)s), 0) FROM arrival_counter;

-- name: take
-- A consumer's position, unless another worker holds it: whoever has the row hands on.
SELECT event_id, until_id FROM positions WHERE consumer = %(consumer)s FOR UPDATE SKIP LOCKED;

-- name: end_of_page
-- The last of the next events to hand on together: so many, and so many bytes of data, but at least one.
SELECT max(id) FROM (
    SELECT id, row_number() OVER following AS events, sum(bytes) OVER following AS bytes
    FROM (SELECT id, coalesce(octet_length(data), 0) AS bytes FROM events
          WHERE id > %(after)s AND id <= %(newest)s ORDER BY id LIMIT %(events)s) page
    WINDOW following AS (ORDER BY id)
) counted
WHERE bytes <= %(bytes)s OR events = 1;

-- name: intend
-- Say what will be handed on, before it is: after a crash it is the same.
UPDATE positions SET until_id = %(until)s WHERE consumer = %(consumer)s;

-- name: page
-- What is to be handed on, in the order of arrival.
SELECT e.id, e.device_id, d.site, e.stream, e.seq, e.type, e.learner_id, e.object_id, e.occurred_at, e.boot_id,
       e.boottime_ms, e.clock_synced, e.data, e.received_ms, e.best_ms, e.quality
FROM events e LEFT JOIN devices d ON d.device_id = e.device_id
WHERE e.id > %(after)s AND e.id <= %(until)s ORDER BY e.id;

-- name: move
-- All up to there is handed on.
UPDATE positions SET event_id = %(until)s, until_id = NULL, moved_ms = %(now)s WHERE consumer = %(consumer)s;

-- name: only_one
-- Whether this transaction alone, of all workers, does what `name` says.
SELECT pg_try_advisory_xact_lock(hashtextextended(%(name)s, 0));

-- name: crossings
-- What nobody has been told.
SELECT c.id, c.device_id, d.site, c.kind, c.at_ms, c.consecutive_failures, c.failing_since_ms, c.last_errors
FROM crossings c LEFT JOIN devices d ON d.device_id = c.device_id
WHERE c.told_ms IS NULL ORDER BY c.id;

-- name: told
-- These are in notices now.
UPDATE crossings SET told_ms = %(now)s WHERE told_ms IS NULL AND id = ANY(%(ids)s);

-- name: last_digest
-- When many devices were last spoken of in one notice.
SELECT max(made_ms) FROM notices WHERE target = 'log' AND digest AND made_ms > %(since)s;

-- name: add_notice
-- One notice for one service; the log has it at once.
INSERT INTO notices (target, digest, title, body, made_ms, sent_ms)
VALUES (%(target)s, %(digest)s, %(title)s, %(body)s, %(now)s, CASE WHEN %(target)s = 'log' THEN %(now)s END);

-- name: next_notice
-- The oldest notice that waits for a service; those that it did not take for long come after the others.
SELECT id, title, body FROM notices WHERE target = %(target)s AND sent_ms IS NULL
ORDER BY made_ms < %(long_ago)s, id LIMIT 1;

-- name: sent
-- The service took it.
UPDATE notices SET sent_ms = %(now)s WHERE id = %(id)s;

-- name: alerts_waiting
-- Devices' crossings that nobody was told, and notices that a service did not take yet.
SELECT (SELECT count(*) FROM crossings WHERE told_ms IS NULL),
       (SELECT count(*) FROM notices WHERE sent_ms IS NULL AND target = ANY(%(targets)s));

-- name: forget_notices
-- Notices of long ago; gives those back that no service took.
WITH gone AS (DELETE FROM notices WHERE made_ms < %(before)s RETURNING sent_ms)
SELECT count(*) FILTER (WHERE sent_ms IS NULL) FROM gone;

-- name: forget_crossings
-- What was told long ago.
DELETE FROM crossings WHERE told_ms < %(before)s;

-- name: forget_marks
-- Of writers that ended long ago.
DELETE FROM marks WHERE marked_at < now() - interval '90 days';

-- name: hurry
-- Wait for no lock longer than this: whoever waits for a table's lock makes all wait that come after.
SELECT set_config('lock_timeout', '2s', true);

-- name: make_months
-- Partitions for the months to come; a new one takes the table's lock, which a backup that runs holds for hours.
SELECT make_months(now(), 3);
