-- name: state
-- The one row of pointers.
SELECT stream, delivered, watermark, trimmed, trimmed_upto, guard FROM state WHERE id = 1;

-- name: insert_state
-- Begin a stream.
INSERT INTO state (id, stream, delivered, watermark, trimmed, trimmed_upto, guard) VALUES (1, ?, ?, ?, ?, ?, ?);

-- name: update_state
-- Move the pointers.
UPDATE state SET stream = ?, delivered = ?, watermark = ?, trimmed = ?, trimmed_upto = ?, guard = ? WHERE id = 1;

-- name: last_event
-- The newest event held.
SELECT seq, upto FROM events ORDER BY seq DESC LIMIT 1;

-- name: first_event
-- The oldest event held.
SELECT seq, upto FROM events ORDER BY seq LIMIT 1;

-- name: insert_event
-- Record one event.
INSERT INTO events (seq, crc, upto, attempt, key, body) VALUES (?, ?, ?, ?, ?, ?);

-- name: event_by_key
-- The event recorded under the caller's own id.
SELECT seq, body FROM events WHERE key = ?;

-- name: newest_attempts
-- Attempts beside the newest events, to recognise one whose answer was lost.
SELECT attempt, seq FROM events WHERE seq > ? AND attempt IS NOT NULL ORDER BY seq;

-- name: events_after
-- Events in order, for a batch.
SELECT seq, crc, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: event
-- One event.
SELECT body FROM events WHERE seq = ?;

-- name: upto
-- Bytes of all bodies of the stream up to an event.
SELECT upto FROM events WHERE seq = ?;

-- name: delete_events
-- Forget delivered events up to a number.
DELETE FROM events WHERE seq <= ?;

-- name: insert_dead
-- Copy an event to the dead letters; one that is there already stays as it is.
INSERT INTO dead (stream, seq, code, detail, body, requeued_as, local) VALUES (?, ?, ?, ?, ?, NULL, ?)
ON CONFLICT (stream, seq) DO NOTHING;

-- name: dead_letters
-- All dead letters, oldest first.
SELECT stream, seq, code, detail, body, requeued_as FROM dead ORDER BY id;

-- name: dead_letter
-- A seq's dead letter: one that was not queued again first, then of this stream, else of the newest earlier one.
SELECT stream, seq, code, detail, body, requeued_as FROM dead WHERE seq = ?1
ORDER BY requeued_as IS NULL DESC, stream = ?2 DESC, id DESC LIMIT 1;

-- name: dead_of_stream
-- Which events of the stream within two numbers are dead letters.
SELECT seq FROM dead WHERE stream = ? AND seq BETWEEN ? AND ?;

-- name: set_aside_here
-- Events of the stream, from a number on, that the device itself set aside.
SELECT seq FROM dead WHERE stream = ? AND seq >= ? AND local = 1 ORDER BY seq;

-- name: conflicts
-- Events of the stream that the receiver holds another version of, and that were not queued again.
SELECT seq, body FROM dead WHERE stream = ? AND code = 'conflict' AND requeued_as IS NULL ORDER BY seq;

-- name: mark_requeued
-- Remember a dead letter's new seq.
UPDATE dead SET requeued_as = ? WHERE stream = ? AND seq = ?;

-- name: count_dead
-- Dead letters nobody has dealt with.
SELECT count(*) FROM dead WHERE requeued_as IS NULL;

-- name: reports
-- Reports that wait, oldest first.
SELECT id, key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, folded FROM reports ORDER BY id;

-- name: next_report
-- The oldest report that waits.
SELECT id, key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, folded
FROM reports ORDER BY id LIMIT 1;

-- name: insert_report
-- Queue a report.
INSERT INTO reports (key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, folded)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: update_report
-- Make a report stand for another one too.
UPDATE reports SET files = ?, errors = ?, speed = ?, folded = ? WHERE id = ?;

-- name: delete_report
-- A report was delivered, or folded into another one.
DELETE FROM reports WHERE id = ?;

-- name: count_reports
-- Reports that wait.
SELECT count(*) FROM reports;

-- name: insert_salvaged
-- Note a file that was set aside.
INSERT INTO salvaged (at_ms, reason, carried, damaged, file) VALUES (?, ?, ?, ?, ?);

-- name: salvaged
-- Files set aside, oldest first.
SELECT at_ms, reason, carried, damaged, file FROM salvaged ORDER BY id;

-- name: note
-- A small value by name.
SELECT value FROM notes WHERE name = ?;

-- name: all_notes
-- All small values.
SELECT name, value FROM notes;

-- name: set_note
-- Keep a small value.
INSERT INTO notes (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
