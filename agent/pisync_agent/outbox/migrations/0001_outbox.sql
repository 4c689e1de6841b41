-- The outbox, version 1.

-- One row. The checksum covers the other columns: a broken file must not pass off a wrong number as true.
CREATE TABLE pointers (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stream TEXT NOT NULL,
    delivered INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    trimmed INTEGER NOT NULL,         -- events 1 to this number were delivered and deleted
    trimmed_offset INTEGER NOT NULL,  -- the end_offset of the last of them
    checksum INTEGER NOT NULL
);

-- The events held: always a range without gaps from pointers.trimmed + 1. Rows are written once and never updated.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,             -- CRC-32 of `body` in UTF-8
    end_offset INTEGER NOT NULL,      -- bytes of all bodies of the stream up to and including this event
    attempt INTEGER,                  -- finds an event whose answer was lost (see recorder)
    id TEXT,                          -- the app's own key
    body TEXT NOT NULL                -- the event's JSON as it is sent
);
CREATE UNIQUE INDEX events_id ON events (id) WHERE id IS NOT NULL;

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    body TEXT NOT NULL,
    requeued_as INTEGER,
    local INTEGER NOT NULL,           -- 1: made by the device; the receiver does not count it as accounted for
    UNIQUE (stream, seq)
);

CREATE TABLE sync_events (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,                -- its Idempotency-Key
    at_ms INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    boottime_ms INTEGER NOT NULL,
    clock_synced INTEGER NOT NULL,
    files INTEGER NOT NULL,
    errors TEXT NOT NULL,
    speed REAL NOT NULL,
    runs INTEGER NOT NULL
);

CREATE TABLE salvaged (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    transferred INTEGER NOT NULL,
    damaged INTEGER NOT NULL,
    file TEXT NOT NULL
);

CREATE TABLE notes (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

PRAGMA user_version = 1;
