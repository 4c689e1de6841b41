-- name: begin
-- Begin a transaction whose process may vanish, with limits on a statement and on the time between statements.
BEGIN; SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '120s';

-- name: commit
-- Commit the transaction.
COMMIT;

-- name: lock
-- Take a lock until the transaction ends, unless another process holds it.
SELECT pg_try_advisory_xact_lock(hashtextextended(%(name)s, 0));

-- name: create_position
-- Place a consumer that has no position yet before the first event.
INSERT INTO positions (consumer, event_id, moved_ms) VALUES (%(consumer)s, 0, %(now)s)
ON CONFLICT (consumer) DO NOTHING;

-- name: set_position
-- Place a consumer after this event, to publish events again or to skip some.
INSERT INTO positions (consumer, event_id, moved_ms) VALUES (%(consumer)s, %(event_id)s, %(now)s)
ON CONFLICT (consumer) DO UPDATE SET event_id = excluded.event_id, until_id = NULL, moved_ms = excluded.moved_ms;

-- name: newest
-- The id up to which every event is visible.
SELECT last_arrival();

-- name: take
-- A consumer's position, locked until the commit; no row while another worker holds it.
SELECT event_id, until_id FROM positions WHERE consumer = %(consumer)s FOR UPDATE SKIP LOCKED;

-- name: end_of_page
-- The last of the next events to publish together: limited in number and in bytes of data, but at least one.
SELECT max(id) FROM (
    SELECT id, row_number() OVER following AS events, sum(bytes) OVER following AS bytes
    FROM (SELECT id, coalesce(octet_length(data), 0) AS bytes FROM events
          WHERE id > %(after)s AND id <= %(newest)s ORDER BY id LIMIT %(events)s) page
    WINDOW following AS (ORDER BY id)
) counted
WHERE bytes <= %(bytes)s OR events = 1;

-- name: set_page_end
-- Record the page before it is published: a repetition after a crash is the same page.
UPDATE positions SET until_id = %(until)s WHERE consumer = %(consumer)s;

-- name: page
-- The events of a page in the order of arrival.
SELECT * FROM events WHERE id > %(after)s AND id <= %(until)s ORDER BY id;

-- name: move
-- The page is published.
UPDATE positions SET event_id = %(until)s, until_id = NULL, moved_ms = %(now)s WHERE consumer = %(consumer)s;

-- name: pending_crossings
-- Devices that began to fail or recovered, in that order, and that no notice covers yet.
SELECT c.id, c.device_id, d.site, c.kind, c.at_ms, c.failing_since_ms, c.last_errors
FROM crossings c LEFT JOIN devices d ON d.device_id = c.device_id
WHERE c.notified_ms IS NULL ORDER BY c.id;

-- name: mark_notified
-- Notices cover these crossings now.
UPDATE crossings SET notified_ms = %(now)s WHERE notified_ms IS NULL AND id = ANY(%(ids)s);

-- name: last_digest
-- When the last digest was made.
SELECT max(made_ms) FROM notices WHERE target = 'log' AND digest AND made_ms > %(since)s;

-- name: add_notice
-- One notice for one target; the log has it at once.
INSERT INTO notices (target, digest, title, body, made_ms, sent_ms)
VALUES (%(target)s, %(digest)s, %(title)s, %(body)s, %(now)s, CASE WHEN %(target)s = 'log' THEN %(now)s END);

-- name: next_notice
-- The oldest notice for a service; those that it has refused for long come after the others.
SELECT id, title, body FROM notices WHERE target = %(target)s AND sent_ms IS NULL
ORDER BY made_ms < %(long_ago)s, id LIMIT 1;

-- name: mark_sent
-- The service accepted the notice.
UPDATE notices SET sent_ms = %(now)s WHERE id = %(id)s;

-- name: count_pending
-- How many crossings no notice covers, and how many notices their services have yet to accept.
SELECT (SELECT count(*) FROM crossings WHERE notified_ms IS NULL),
       (SELECT count(*) FROM notices WHERE sent_ms IS NULL AND target = ANY(%(targets)s));

-- name: lags
-- How many events each consumer has yet to publish.
SELECT consumer, greatest(last_arrival() - event_id, 0) FROM positions;

-- name: delete_old_notices
-- Return how many of the deleted notices no service accepted.
WITH deleted AS (DELETE FROM notices WHERE made_ms < %(before)s RETURNING sent_ms)
SELECT count(*) FILTER (WHERE sent_ms IS NULL) FROM deleted;

-- name: delete_old_crossings
-- Delete crossings that notices covered long ago.
DELETE FROM crossings WHERE notified_ms < %(before)s;
