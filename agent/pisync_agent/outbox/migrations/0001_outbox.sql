-- The outbox, version 1.

-- One row. `guard` is a checksum over the others: a broken file must not pass off a wrong number as the truth.
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stream TEXT NOT NULL,
    delivered INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    trimmed INTEGER NOT NULL,        -- events 1 to this number were delivered and deleted
    trimmed_upto INTEGER NOT NULL,   -- their `upto`
    guard INTEGER NOT NULL
);

-- The held events: always one run of numbers, from state.trimmed + 1. Rows are written once and never updated.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,            -- CRC-32 of `body` in UTF-8
    upto INTEGER NOT NULL,           -- bytes of all bodies of the stream up to this one, itself included
    attempt INTEGER,                 -- see recorder: finds an event again whose answer was lost
    key TEXT,                        -- the caller's own id
    body TEXT NOT NULL               -- the event's JSON as it is sent
);
CREATE UNIQUE INDEX events_key ON events (key) WHERE key IS NOT NULL;

CREATE TABLE dead (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    body TEXT NOT NULL,
    requeued_as INTEGER,
    local INTEGER NOT NULL,          -- 1: the device set it aside; the receiver does not count it as accounted for
    UNIQUE (stream, seq)
);

CREATE TABLE reports (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    boottime_ms INTEGER NOT NULL,
    clock_synced INTEGER NOT NULL,
    files INTEGER NOT NULL,
    errors TEXT NOT NULL,
    speed REAL NOT NULL,
    folded INTEGER NOT NULL
);

CREATE TABLE salvaged (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    carried INTEGER NOT NULL,
    damaged INTEGER NOT NULL,
    file TEXT NOT NULL
);

CREATE TABLE notes (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

PRAGMA user_version = 1;
