-- Times are whole milliseconds since 1970 (UTC); JSON is text.

CREATE TABLE devices (
    device_id            TEXT PRIMARY KEY,
    site                 TEXT,
    agent                TEXT,
    enrolled_ms          INTEGER,
    last_contact_ms      INTEGER,
    last_refused_ms      INTEGER,
    cloned_since_ms      INTEGER,
    conflicts            INTEGER NOT NULL,
    -- How its sync runs go, kept up to date at intake so that nobody has to read the history.
    consecutive_failures INTEGER NOT NULL,
    total_failures       INTEGER NOT NULL,
    failing_since_ms     INTEGER,
    last_sync_ms         INTEGER,
    last_success_ms      INTEGER,
    last_failure_ms      INTEGER,
    last_errors          TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX devices_by_streak ON devices (consecutive_failures DESC, failing_since_ms)
    WHERE consecutive_failures > 0;

CREATE TABLE streams (
    id        INTEGER PRIMARY KEY,
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
    UNIQUE (device_id, stream)
) STRICT;

-- What is missing below a stream's highest seq, as inclusive ranges that do not touch.
CREATE TABLE gaps (
    stream_id INTEGER NOT NULL,
    first     INTEGER NOT NULL,
    last      INTEGER NOT NULL,
    PRIMARY KEY (stream_id, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id           INTEGER PRIMARY KEY,  -- counts up in the order of arrival
    stream_id    INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    type         TEXT NOT NULL,
    learner_id   TEXT,
    object_id    TEXT,
    occurred_at  TEXT NOT NULL,
    boot_id      TEXT,
    boottime_ms  INTEGER,
    clock_synced INTEGER NOT NULL,
    data         TEXT,
    received_ms  INTEGER NOT NULL,
    best_ms      INTEGER NOT NULL,
    quality      INTEGER NOT NULL,     -- 0 synced, 1 corrected, 2 estimated
    UNIQUE (stream_id, seq)
) STRICT;

-- Both end in the id, so they give the order of arrival.
CREATE INDEX events_by_stream ON events (stream_id);
CREATE INDEX events_by_learner ON events (learner_id) WHERE learner_id IS NOT NULL;

-- Which events arrived in an hour (received_ms / 3600000): a search by arrival starts and ends at the right place,
-- whatever the receiver's clock did.
CREATE TABLE arrivals (
    hour     INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    last_id  INTEGER NOT NULL
) STRICT;

-- Accounted for without being stored: the same event is stored elsewhere.
CREATE TABLE carried (
    stream_id INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    event_id  INTEGER NOT NULL,
    PRIMARY KEY (stream_id, seq)
) STRICT, WITHOUT ROWID;

-- Where stored events were first recorded, if elsewhere. That stream need not have arrived.
CREATE TABLE origins (
    device_id TEXT NOT NULL,
    stream    TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    event_id  INTEGER NOT NULL,
    PRIMARY KEY (device_id, stream, seq, event_id)
) STRICT, WITHOUT ROWID;

-- Events that broke a rule, and (code conflict) further versions of a seq that already had one.
CREATE TABLE rejected (
    id          INTEGER PRIMARY KEY,
    stream_id   INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    code        TEXT NOT NULL,
    detail      TEXT NOT NULL,
    body        TEXT NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX rejected_by_seq ON rejected (stream_id, seq);

-- Boots seen alive: when each began, and its boot time when it last sent.
CREATE TABLE boots (
    stream_id   INTEGER NOT NULL,
    boot_id     TEXT NOT NULL,
    epoch_ms    INTEGER NOT NULL,
    boottime_ms INTEGER NOT NULL,
    PRIMARY KEY (stream_id, boot_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE sync_events (
    id                 INTEGER PRIMARY KEY,
    device_id          TEXT NOT NULL,
    timestamp          TEXT NOT NULL,
    at_ms              INTEGER NOT NULL,
    total_files_synced INTEGER NOT NULL,
    total_errors       INTEGER NOT NULL,
    internet_speed     ANY NOT NULL,   -- an integer or a decimal, as it was sent
    errors             TEXT,
    idempotency_key    TEXT,
    received_ms        INTEGER NOT NULL
) STRICT;

CREATE INDEX sync_events_by_device ON sync_events (device_id, at_ms);
CREATE INDEX sync_events_failed ON sync_events (at_ms, device_id, total_errors) WHERE total_errors > 0;
CREATE UNIQUE INDEX sync_events_by_key ON sync_events (device_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE tokens (
    id              INTEGER PRIMARY KEY,
    role            TEXT NOT NULL CHECK (role IN ('device', 'admin', 'viewer')),
    token_hash      TEXT NOT NULL UNIQUE,
    device_id       TEXT,
    label           TEXT,
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER,
    revoked_ms      INTEGER,
    last_refused_ms INTEGER,
    CHECK (role <> 'device' OR device_id IS NOT NULL)
) STRICT;

CREATE INDEX tokens_by_device ON tokens (device_id) WHERE device_id IS NOT NULL;

CREATE TABLE enrollments (
    id         INTEGER PRIMARY KEY,
    code_hash  TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
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
