-- Times are whole milliseconds since 1970 (UTC); JSON is text, as it was sent. The columns of devices, streams, events
-- and so on are the fields of the structs in domain/rows.py, in their order, on which `SELECT *` and `INSERT` without
-- names rely (events have their id before them). PostgreSQL has the same tables and columns.

CREATE TABLE devices (
    -- How its sync runs go, kept up to date at intake so that no query reads the history.
    consecutive_failures INTEGER NOT NULL,
    total_failures       INTEGER NOT NULL,
    failing_since_ms     INTEGER,
    last_sync_ms         INTEGER,
    last_success_ms      INTEGER,
    streak_after_ms      INTEGER,
    last_failure_ms      INTEGER,
    last_errors          TEXT,
    device_id            TEXT PRIMARY KEY,
    label                TEXT,
    site                 TEXT,
    site_since_ms        INTEGER,
    site_history         TEXT,
    agent                TEXT,
    enrolled_ms          INTEGER,
    code_id              INTEGER,
    retired_ms           INTEGER,
    last_contact_ms      INTEGER,
    last_refused_ms      INTEGER,
    cloned_since_ms      INTEGER,
    conflicts            INTEGER NOT NULL,
    streams              INTEGER NOT NULL,
    copies               INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX devices_by_streak ON devices (consecutive_failures DESC, failing_since_ms) WHERE consecutive_failures > 0;
CREATE INDEX devices_by_failures ON devices (total_failures DESC) WHERE total_failures > 0;

CREATE TABLE streams (
    device_id TEXT NOT NULL,
    stream    TEXT NOT NULL,
    watermark INTEGER NOT NULL,
    highest   INTEGER NOT NULL,
    stored    INTEGER NOT NULL,
    carried   INTEGER NOT NULL,
    rejected  INTEGER NOT NULL,
    conflicts INTEGER NOT NULL,
    first_ms  INTEGER NOT NULL,
    last_ms   INTEGER NOT NULL,
    best_ms   INTEGER,
    boots     TEXT NOT NULL,
    PRIMARY KEY (device_id, stream)
) STRICT, WITHOUT ROWID;

-- What is missing below a stream's highest seq, as inclusive ranges that do not touch.
CREATE TABLE gaps (
    device_id TEXT NOT NULL,
    stream    TEXT NOT NULL,
    first     INTEGER NOT NULL,
    last      INTEGER NOT NULL,
    PRIMARY KEY (device_id, stream, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id           INTEGER PRIMARY KEY,  -- counts up in the order of arrival, over all devices
    device_id    TEXT NOT NULL,
    stream       TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    type         TEXT NOT NULL,
    site         TEXT,
    learner_home TEXT,
    learner_id   TEXT,
    object_id    TEXT,
    event_id     TEXT,
    occurred_at  TEXT NOT NULL,
    recorded_at  TEXT,
    boot_id      TEXT,
    boottime_ms  INTEGER,
    clock_synced INTEGER NOT NULL,
    data         TEXT,
    received_ms  INTEGER NOT NULL,
    best_ms      INTEGER NOT NULL,
    quality      INTEGER NOT NULL,     -- 0 synced, 1 corrected, 2 estimated
    content      BLOB NOT NULL,
    UNIQUE (device_id, stream, seq)
) STRICT;

-- Both end in the id, so they give the order of arrival.
CREATE INDEX events_by_device ON events (device_id);
CREATE INDEX events_by_learner ON events (learner_id) WHERE learner_id IS NOT NULL;

-- An event with this key is stored at that place (content.id_key, content.origin_key).
CREATE TABLE event_keys (
    device_id        TEXT NOT NULL,
    key              BLOB NOT NULL,
    stored_device_id TEXT NOT NULL,
    stream           TEXT NOT NULL,
    seq              INTEGER NOT NULL,
    PRIMARY KEY (device_id, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX event_keys_by_place ON event_keys (stored_device_id, stream, seq);

-- Accounted for without being stored: the same event is stored elsewhere.
CREATE TABLE carried (
    device_id        TEXT NOT NULL,
    stream           TEXT NOT NULL,
    seq              INTEGER NOT NULL,
    content          BLOB NOT NULL,
    stored_device_id TEXT NOT NULL,
    stored_stream    TEXT NOT NULL,
    stored_seq       INTEGER NOT NULL,
    PRIMARY KEY (device_id, stream, seq)
) STRICT, WITHOUT ROWID;

-- Events that broke a rule, and (code conflict) further versions of a seq that already had one.
CREATE TABLE rejected (
    device_id   TEXT NOT NULL,
    stream      TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    content     BLOB NOT NULL,
    code        TEXT NOT NULL,
    detail      TEXT NOT NULL,
    body        TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (device_id, stream, seq, content)
) STRICT;

CREATE INDEX rejected_by_arrival ON rejected (device_id, stream, received_ms, seq, content);

-- Which events arrived in an hour (received_ms / 3600000): a search by arrival starts and ends at the right place,
-- whatever the receiver's clock did. Retention keeps these rows: they also hold the highest id ever given.
CREATE TABLE arrivals (
    hour     INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    last_id  INTEGER NOT NULL
) STRICT;

CREATE TABLE sync_events (
    device_id          TEXT NOT NULL,
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again after retention deleted the newest
    site               TEXT,
    timestamp          TEXT NOT NULL,
    at_ms              INTEGER NOT NULL,                   -- the effective time
    total_files_synced INTEGER NOT NULL,
    total_errors       INTEGER NOT NULL,
    internet_speed     ANY NOT NULL,                       -- an integer or a decimal, as it was sent
    errors             TEXT,
    idempotency_key    TEXT,
    received_ms        INTEGER NOT NULL
) STRICT;

CREATE INDEX sync_events_by_device ON sync_events (device_id, at_ms);
CREATE INDEX sync_events_failed ON sync_events (device_id, at_ms, total_errors) WHERE total_errors > 0;
CREATE INDEX sync_events_failed_by_time ON sync_events (at_ms, device_id, total_errors) WHERE total_errors > 0;
CREATE INDEX sync_events_by_arrival ON sync_events (received_ms);
CREATE UNIQUE INDEX sync_events_by_key ON sync_events (device_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE tokens (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    scope           TEXT NOT NULL CHECK (scope IN ('device', 'viewer', 'admin', 'metrics')),
    token_hash      TEXT NOT NULL UNIQUE,
    device_id       TEXT,
    label           TEXT,
    sites           TEXT,
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER,
    revoked_ms      INTEGER,
    last_refused_ms INTEGER,
    CHECK (scope <> 'device' OR device_id IS NOT NULL)
) STRICT;

CREATE INDEX tokens_by_device ON tokens (device_id) WHERE device_id IS NOT NULL;

CREATE TABLE enrollments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    code_hash  TEXT NOT NULL UNIQUE,
    label      TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    uses       INTEGER NOT NULL,
    uses_left  INTEGER NOT NULL CHECK (uses_left >= 0),
    site       TEXT,
    device_id  TEXT
) STRICT;

-- What a readiness check writes.
CREATE TABLE pulse (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
) STRICT;

INSERT INTO pulse (id, beats) VALUES (1, 0);
