-- name: begin
-- Begin a transaction whose process may vanish, with limits on a statement and on the time between statements.
BEGIN; SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '120s';

-- name: commit
-- Commit the transaction.
COMMIT;

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
