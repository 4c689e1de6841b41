-- name: pointers
-- The row of pointers.
SELECT stream, delivered, watermark, trimmed, trimmed_offset, checksum FROM pointers WHERE id = 1;

-- name: insert_pointers
-- Begin a stream.
INSERT INTO pointers (id, stream, delivered, watermark, trimmed, trimmed_offset, checksum)
VALUES (1, ?, ?, ?, ?, ?, ?);

-- name: update_pointers
-- Move the pointers.
UPDATE pointers
SET stream = ?, delivered = ?, watermark = ?, trimmed = ?, trimmed_offset = ?, checksum = ? WHERE id = 1;

-- name: last_event
-- The newest event held.
SELECT seq, end_offset FROM events ORDER BY seq DESC LIMIT 1;

-- name: first_event
-- The oldest event held.
SELECT seq, end_offset FROM events ORDER BY seq LIMIT 1;

-- name: insert_event
-- Record one event.
INSERT INTO events (seq, crc, end_offset, attempt, id, body) VALUES (?, ?, ?, ?, ?, ?);

-- name: event_by_id
-- The event recorded under the app's own id.
SELECT seq, body FROM events WHERE id = ?;

-- name: newest_attempts
-- Attempts of the newest events, to recognise an event whose answer was lost.
SELECT attempt, seq FROM events WHERE seq > ? AND attempt IS NOT NULL ORDER BY seq;

-- name: events_after
-- Events in order, for a batch.
SELECT seq, crc, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: event
-- One event.
SELECT body FROM events WHERE seq = ?;

-- name: end_offset
-- Bytes of all bodies of the stream up to an event.
SELECT end_offset FROM events WHERE seq = ?;

-- name: delete_events
-- Delete delivered events up to a number.
DELETE FROM events WHERE seq <= ?;

-- name: insert_dead_letter
-- Copy an event to the dead letters; an existing dead letter stays as it is.
INSERT INTO dead_letters (stream, seq, code, detail, body, requeued_as, local) VALUES (?, ?, ?, ?, ?, NULL, ?)
ON CONFLICT (stream, seq) DO NOTHING;

-- name: dead_letters
-- Dead letters, oldest first; a limit of -1 is none.
SELECT stream, seq, code, detail, body, requeued_as FROM dead_letters ORDER BY id LIMIT ? OFFSET ?;

-- name: dead_letter
-- A seq's dead letter: not yet requeued first, then of this stream, then of the newest earlier stream.
SELECT stream, seq, code, detail, body, requeued_as FROM dead_letters WHERE seq = ?1
ORDER BY requeued_as IS NULL DESC, stream = ?2 DESC, id DESC LIMIT 1;

-- name: dead_of_stream
-- Which events of the stream within two numbers are dead letters.
SELECT seq FROM dead_letters WHERE stream = ? AND seq BETWEEN ? AND ?;

-- name: local_dead_letters
-- Events of the stream, from a number on, that the device itself made dead letters.
SELECT seq FROM dead_letters WHERE stream = ? AND seq >= ? AND local = 1 ORDER BY seq;

-- name: mark_requeued
-- Remember a dead letter's new seq.
UPDATE dead_letters SET requeued_as = ? WHERE stream = ? AND seq = ?;

-- name: count_dead_letters
-- Dead letters that were not queued again.
SELECT count(*) FROM dead_letters WHERE requeued_as IS NULL;

-- name: next_sync_event
-- The oldest pending sync event.
SELECT id, key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, runs
FROM sync_events ORDER BY id LIMIT 1;

-- name: newest_sync_event
-- The newest pending sync event.
SELECT id, key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, runs
FROM sync_events ORDER BY id DESC LIMIT 1;

-- name: insert_sync_event
-- Queue a sync event.
INSERT INTO sync_events (key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, runs)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: delete_sync_event
-- Delete a sync event that was delivered, or merged into another.
DELETE FROM sync_events WHERE id = ?;

-- name: count_sync_events
-- Pending sync events.
SELECT count(*) FROM sync_events;

-- name: insert_salvaged
-- Note a file that was set aside.
INSERT INTO salvaged (at_ms, reason, transferred, damaged, file) VALUES (?, ?, ?, ?, ?);

-- name: salvaged
-- Files set aside, oldest first.
SELECT at_ms, reason, transferred, damaged, file FROM salvaged ORDER BY id;

-- name: note
-- A small value by name.
SELECT value FROM notes WHERE name = ?;

-- name: count_notes
-- How many notes have a name from one text on and before another.
SELECT count(*) FROM notes WHERE name >= ? AND name < ?;

-- name: set_note
-- Keep a small value.
INSERT INTO notes (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
