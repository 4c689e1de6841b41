-- The tables and columns of sqlite/migrations, which explains them, in the order of the structs in domain/rows.py: on it
-- `SELECT *` and `INSERT` without names rely. Every primary and unique key of a table that grows begins with device_id,
-- so that Citus can distribute it (docs/citus.md); the other tables are small.

CREATE TABLE devices (
    consecutive_failures bigint NOT NULL DEFAULT 0,
    total_failures       bigint NOT NULL DEFAULT 0,
    failing_since_ms     bigint,
    last_sync_ms         bigint,
    last_success_ms      bigint,
    streak_after_ms      bigint,
    last_failure_ms      bigint,
    last_errors          text,
    device_id            text COLLATE "C" PRIMARY KEY,
    label                text,
    site                 text COLLATE "C",
    site_since_ms        bigint,
    site_history         text,
    agent                text,
    enrolled_ms          bigint,
    code_id              bigint,
    retired_ms           bigint,
    last_contact_ms      bigint,
    last_refused_ms      bigint,
    cloned_since_ms      bigint,
    conflicts            bigint NOT NULL DEFAULT 0,
    streams              bigint NOT NULL DEFAULT 0,
    copies               bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);  -- rows change often; room in each page keeps the changes off the indexes

CREATE INDEX devices_by_streak ON devices (consecutive_failures DESC, failing_since_ms, device_id)
    WHERE consecutive_failures > 0;
CREATE INDEX devices_by_failures ON devices (total_failures DESC, device_id) WHERE total_failures > 0;
CREATE INDEX devices_by_site ON devices (site, device_id);

CREATE TABLE streams (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    watermark bigint NOT NULL,
    highest   bigint NOT NULL,
    stored    bigint NOT NULL,
    carried   bigint NOT NULL,
    rejected  bigint NOT NULL,
    conflicts bigint NOT NULL,
    first_ms  bigint NOT NULL,
    last_ms   bigint NOT NULL,
    best_ms   bigint,
    boots     text NOT NULL,
    PRIMARY KEY (device_id, stream)
) WITH (fillfactor = 70);

CREATE TABLE gaps (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    first     bigint NOT NULL,
    last      bigint NOT NULL,
    PRIMARY KEY (device_id, stream, first)
);

CREATE TABLE events (
    id           bigint NOT NULL,      -- counts up in the order of arrival, over all devices; see arrival_counter
    device_id    text COLLATE "C" NOT NULL,
    stream       text COLLATE "C" NOT NULL,
    seq          bigint NOT NULL,
    type         text COLLATE "C" NOT NULL,
    site         text COLLATE "C",
    learner_home text COLLATE "C",
    learner_id   text COLLATE "C",
    object_id    text COLLATE "C",
    event_id     text COLLATE "C",
    occurred_at  text NOT NULL,
    recorded_at  text,
    boot_id      text,
    boottime_ms  bigint,
    clock_synced boolean NOT NULL,
    data         text,
    received_ms  bigint NOT NULL,
    best_ms      bigint NOT NULL,
    quality      smallint NOT NULL,    -- 0 synced, 1 corrected, 2 estimated
    content      bytea NOT NULL,
    PRIMARY KEY (device_id, stream, seq)
);

CREATE INDEX events_by_arrival ON events (id);
CREATE INDEX events_by_device ON events (device_id, id);
CREATE INDEX events_by_learner ON events (learner_id, id) WHERE learner_id IS NOT NULL;

CREATE TABLE event_keys (
    device_id        text COLLATE "C" NOT NULL,
    key              bytea NOT NULL,
    stored_device_id text COLLATE "C" NOT NULL,
    stream           text COLLATE "C" NOT NULL,
    seq              bigint NOT NULL,
    PRIMARY KEY (device_id, key)
);

CREATE INDEX event_keys_by_place ON event_keys (stored_device_id, stream, seq);

CREATE TABLE carried (
    device_id        text COLLATE "C" NOT NULL,
    stream           text COLLATE "C" NOT NULL,
    seq              bigint NOT NULL,
    content          bytea NOT NULL,
    stored_device_id text COLLATE "C" NOT NULL,
    stored_stream    text COLLATE "C" NOT NULL,
    stored_seq       bigint NOT NULL,
    PRIMARY KEY (device_id, stream, seq)
);

CREATE TABLE rejected (
    device_id   text COLLATE "C" NOT NULL,
    stream      text COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    content     bytea NOT NULL,
    code        text NOT NULL,
    detail      text NOT NULL,
    body        text NOT NULL,
    received_ms bigint NOT NULL,
    PRIMARY KEY (device_id, stream, seq, content)
);

CREATE INDEX rejected_by_arrival ON rejected (device_id, stream, received_ms, seq, content);

-- The last arrival number given to an event. Updated as the last step before the commit and locked until it: numbers
-- become visible in their order, and a reader that continues from the last one it saw misses none.
CREATE TABLE arrival_counter (
    one  integer PRIMARY KEY CHECK (one = 1),
    last bigint NOT NULL
);

-- The arrival number up to which every event is visible. Citus needs a function of its own here (docs/citus.md).
CREATE FUNCTION last_arrival() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT last FROM arrival_counter';

CREATE TABLE arrivals (
    hour     bigint PRIMARY KEY,
    first_id bigint NOT NULL,
    last_id  bigint NOT NULL
);

CREATE SEQUENCE sync_event_ids;

CREATE TABLE sync_events (
    device_id          text COLLATE "C" NOT NULL,
    id                 bigint NOT NULL,
    site               text COLLATE "C",
    timestamp          text NOT NULL,
    at_ms              bigint NOT NULL,   -- the effective time
    total_files_synced bigint NOT NULL,
    total_errors       bigint NOT NULL,
    internet_speed     numeric NOT NULL,  -- with as many decimals as it was sent with; none for an integer
    errors             text,
    idempotency_key    text COLLATE "C",
    received_ms        bigint NOT NULL,
    PRIMARY KEY (device_id, id),
    UNIQUE (device_id, idempotency_key)
);

CREATE INDEX sync_events_by_device ON sync_events (device_id, at_ms, id);
CREATE INDEX sync_events_failed ON sync_events (device_id, at_ms) WHERE total_errors > 0;
CREATE INDEX sync_events_failed_by_time ON sync_events (at_ms, device_id) WHERE total_errors > 0;
CREATE INDEX sync_events_by_arrival ON sync_events (received_ms);

-- A device's streak of failures reached the alarm, or ended: written with the sync event that did it.
CREATE SEQUENCE crossing_ids;

CREATE TABLE crossings (
    device_id            text COLLATE "C" NOT NULL,
    id                   bigint NOT NULL DEFAULT nextval('crossing_ids'),
    kind                 text NOT NULL CHECK (kind IN ('failing', 'recovered')),
    at_ms                bigint NOT NULL,  -- when the sync event arrived
    consecutive_failures bigint NOT NULL,
    failing_since_ms     bigint,
    last_errors          text,
    notified_ms          bigint,           -- when the notice was made; NULL until then
    PRIMARY KEY (device_id, id)
);

CREATE INDEX crossings_pending ON crossings (id) WHERE notified_ms IS NULL;

-- How far a consumer of stored events has come: the arrival number of the last event it published.
CREATE TABLE positions (
    consumer text PRIMARY KEY,
    event_id bigint NOT NULL,
    until_id bigint,          -- the end of the page that is being published; NULL between two pages
    moved_ms bigint NOT NULL
);

-- Messages to operators, one row for the log and one for each service that it goes to.
CREATE TABLE notices (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target  text NOT NULL,    -- 'log', or a hash of the service's URL, which holds secrets
    digest  boolean NOT NULL, -- whether it covers many devices at once
    title   text NOT NULL,
    body    text NOT NULL,
    made_ms bigint NOT NULL,
    sent_ms bigint            -- NULL until its service took it
);

CREATE INDEX notices_pending ON notices (target, id) WHERE sent_ms IS NULL;
CREATE INDEX notices_by_age ON notices (made_ms);

CREATE TABLE tokens (
    id              bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    scope           text NOT NULL CHECK (scope IN ('device', 'viewer', 'admin', 'metrics')),
    token_hash      text COLLATE "C" NOT NULL UNIQUE,
    device_id       text COLLATE "C",
    label           text,
    sites           text,
    created_ms      bigint NOT NULL,
    expires_ms      bigint,
    revoked_ms      bigint,
    last_refused_ms bigint,
    CHECK (scope <> 'device' OR device_id IS NOT NULL)
);

CREATE INDEX tokens_by_device ON tokens (device_id) WHERE device_id IS NOT NULL;

CREATE TABLE enrollments (
    id         bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    code_hash  text COLLATE "C" NOT NULL UNIQUE,
    label      text,
    created_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    ended_ms   bigint,
    uses       bigint NOT NULL,
    uses_left  bigint NOT NULL CHECK (uses_left >= 0),
    site       text,
    device_id  text COLLATE "C"
);

CREATE TABLE pulse (
    id    integer PRIMARY KEY CHECK (id = 1),
    beats bigint NOT NULL
);

INSERT INTO arrival_counter (one, last) VALUES (1, 0);
INSERT INTO pulse (id, beats) VALUES (1, 0);
