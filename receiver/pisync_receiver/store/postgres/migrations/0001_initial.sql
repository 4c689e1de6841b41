-- Times are whole milliseconds since 1970 (UTC); JSON is text, as it was sent.
--
-- Everything that grows is keyed by device and hash-partitioned by it, so that a partition can live on another server.
-- Progress events and sync events are partitioned by month of arrival below that, so that old months can be exported
-- and detached whole. That a seq is stored once is kept by the streams' own accounts, under the device's row lock.

CREATE TABLE devices (
    device_id            text COLLATE "C" NOT NULL,
    site                 text COLLATE "C",
    agent                text,
    enrolled_ms          bigint,
    last_contact_ms      bigint,
    last_refused_ms      bigint,
    cloned_since_ms      bigint,
    conflicts            bigint NOT NULL DEFAULT 0,
    -- How its sync runs go, kept up to date at intake so that nobody has to read the history.
    consecutive_failures bigint NOT NULL DEFAULT 0,
    total_failures       bigint NOT NULL DEFAULT 0,
    failing_since_ms     bigint,
    last_sync_ms         bigint,
    last_success_ms      bigint,
    last_failure_ms      bigint,
    last_errors          text,
    PRIMARY KEY (device_id)
) PARTITION BY HASH (device_id);

CREATE INDEX devices_by_streak ON devices (consecutive_failures DESC, failing_since_ms, device_id)
    WHERE consecutive_failures > 0;
CREATE INDEX devices_by_failures ON devices (total_failures DESC, device_id) WHERE total_failures > 0;

CREATE SEQUENCE stream_numbers;

CREATE TABLE streams (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    number    bigint NOT NULL DEFAULT nextval('stream_numbers'),  -- in the order in which streams began
    watermark bigint NOT NULL,
    highest   bigint NOT NULL,
    stored    bigint NOT NULL,
    carried   bigint NOT NULL,
    rejected  bigint NOT NULL,
    conflicts bigint NOT NULL,
    first_ms  bigint NOT NULL,
    last_ms   bigint NOT NULL,
    PRIMARY KEY (device_id, stream)
) PARTITION BY HASH (device_id);

-- What is missing below a stream's highest seq, as inclusive ranges that do not touch.
CREATE TABLE gaps (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    first     bigint NOT NULL,
    last      bigint NOT NULL,
    PRIMARY KEY (device_id, stream, first)
) PARTITION BY HASH (device_id);

CREATE TABLE events (
    device_id    text COLLATE "C" NOT NULL,
    stream       text COLLATE "C" NOT NULL,
    seq          bigint NOT NULL,
    id           bigint NOT NULL,      -- counts up in the order of arrival, over all devices; see arrival_counter
    type         text COLLATE "C" NOT NULL,
    learner_id   text COLLATE "C",
    object_id    text COLLATE "C",
    occurred_at  text NOT NULL,
    boot_id      text,
    boottime_ms  bigint,
    clock_synced boolean NOT NULL,
    data         text,
    received_ms  bigint NOT NULL,
    best_ms      bigint NOT NULL,
    quality      smallint NOT NULL,    -- 0 synced, 1 corrected, 2 estimated
    PRIMARY KEY (device_id, stream, seq, received_ms)
) PARTITION BY HASH (device_id);

CREATE INDEX events_by_arrival ON events (id);
CREATE INDEX events_by_device ON events (device_id, id);
CREATE INDEX events_by_learner ON events (learner_id, id) WHERE learner_id IS NOT NULL;

-- The last id given to an event. Taken with a row lock that is held until the commit, as the last step before it: so
-- ids become visible in their order, and who reads on from the last one it saw misses none.
CREATE TABLE arrival_counter (
    one  integer PRIMARY KEY CHECK (one = 1),
    last bigint NOT NULL
);

-- Which events arrived in an hour (received_ms / 3600000): a search by arrival starts and ends at the right place,
-- whatever the receivers' clocks did.
CREATE TABLE arrivals (
    hour     bigint PRIMARY KEY,
    first_id bigint NOT NULL,
    last_id  bigint NOT NULL
);

-- Accounted for without being stored: the same event is stored elsewhere.
CREATE TABLE carried (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    seq       bigint NOT NULL,
    event_id  bigint NOT NULL,
    PRIMARY KEY (device_id, stream, seq)
) PARTITION BY HASH (device_id);

-- Where stored events were first recorded, if elsewhere. That stream need not have arrived.
CREATE TABLE origins (
    device_id text COLLATE "C" NOT NULL,
    stream    text COLLATE "C" NOT NULL,
    seq       bigint NOT NULL,
    event_id  bigint NOT NULL,
    PRIMARY KEY (device_id, stream, seq, event_id)
) PARTITION BY HASH (device_id);

-- Events that broke a rule, and (code conflict) further versions of a seq that already had one.
CREATE SEQUENCE rejected_ids;

CREATE TABLE rejected (
    device_id   text COLLATE "C" NOT NULL,
    id          bigint NOT NULL DEFAULT nextval('rejected_ids'),
    stream      text COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    code        text NOT NULL,
    detail      text NOT NULL,
    body        text NOT NULL,
    received_ms bigint NOT NULL,
    PRIMARY KEY (device_id, id)
) PARTITION BY HASH (device_id);

CREATE INDEX rejected_by_seq ON rejected (device_id, stream, seq);

-- Boots seen alive: when each began, and its boot time when it last sent.
CREATE TABLE boots (
    device_id   text COLLATE "C" NOT NULL,
    stream      text COLLATE "C" NOT NULL,
    boot_id     text COLLATE "C" NOT NULL,
    epoch_ms    bigint NOT NULL,
    boottime_ms bigint NOT NULL,
    PRIMARY KEY (device_id, stream, boot_id)
) PARTITION BY HASH (device_id);

CREATE SEQUENCE sync_event_ids;

CREATE TABLE sync_events (
    device_id          text COLLATE "C" NOT NULL,
    id                 bigint NOT NULL,
    timestamp          text NOT NULL,
    at_ms              bigint NOT NULL,
    total_files_synced bigint NOT NULL,
    total_errors       bigint NOT NULL,
    internet_speed     numeric NOT NULL,  -- with as many decimals as it was sent with; none for an integer
    errors             text,
    idempotency_key    text COLLATE "C",
    received_ms        bigint NOT NULL,
    PRIMARY KEY (device_id, id, received_ms)
) PARTITION BY HASH (device_id);

CREATE INDEX sync_events_by_device ON sync_events (device_id, at_ms, id);
CREATE INDEX sync_events_failed ON sync_events (at_ms, device_id) WHERE total_errors > 0;
CREATE INDEX sync_events_by_key ON sync_events (device_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- A device's streak of failures reached the alarm, or ended: written with the report that did it, told by the worker.
CREATE SEQUENCE crossing_ids;

CREATE TABLE crossings (
    device_id            text COLLATE "C" NOT NULL,
    id                   bigint NOT NULL DEFAULT nextval('crossing_ids'),
    kind                 text NOT NULL CHECK (kind IN ('failing', 'recovered')),
    at_ms                bigint NOT NULL,  -- when the report arrived
    consecutive_failures bigint NOT NULL,
    failing_since_ms     bigint,
    last_errors          text,
    told_ms              bigint,           -- when the alert was handed over; NULL while it waits
    PRIMARY KEY (device_id, id)
) PARTITION BY HASH (device_id);

CREATE INDEX crossings_waiting ON crossings (id) WHERE told_ms IS NULL;

-- How far a consumer of stored events has come: the id of the last event it handed on.
CREATE TABLE positions (
    consumer text PRIMARY KEY,
    event_id bigint NOT NULL,
    until_id bigint,          -- the end of what is being handed on; NULL between two hand-overs
    moved_ms bigint NOT NULL
);

-- What an operator is told, once for the log and once for each service that it goes to.
CREATE TABLE notices (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target  text NOT NULL,    -- 'log', or a hash of the service's URL, which holds secrets
    digest  boolean NOT NULL, -- whether it speaks of many devices at once
    title   text NOT NULL,
    body    text NOT NULL,
    made_ms bigint NOT NULL,
    sent_ms bigint            -- NULL while it waits for its service
);

CREATE INDEX notices_waiting ON notices (target, id) WHERE sent_ms IS NULL;
CREATE INDEX notices_by_age ON notices (made_ms);

CREATE TABLE tokens (
    id              bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    role            text NOT NULL CHECK (role IN ('device', 'admin', 'viewer')),
    token_hash      text COLLATE "C" NOT NULL UNIQUE,
    device_id       text COLLATE "C",
    label           text,
    created_ms      bigint NOT NULL,
    expires_ms      bigint,
    revoked_ms      bigint,
    last_refused_ms bigint,
    CHECK (role <> 'device' OR device_id IS NOT NULL)
);

CREATE INDEX tokens_by_device ON tokens (device_id) WHERE device_id IS NOT NULL;

CREATE TABLE enrollments (
    id         bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    code_hash  text COLLATE "C" NOT NULL UNIQUE,
    created_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    uses_left  bigint NOT NULL CHECK (uses_left >= 0),
    site       text,
    device_id  text COLLATE "C"
);

-- What a readiness check writes.
CREATE TABLE pulse (
    id    integer PRIMARY KEY CHECK (id = 1),
    beats bigint NOT NULL
);

INSERT INTO arrival_counter (one, last) VALUES (1, 0);
INSERT INTO pulse (id, beats) VALUES (1, 0);

-- Make the partitions of some months, from the month of `since` on; those that there are stay as they are. Partitions
-- that live on another server are left alone: that server has months of its own.
CREATE FUNCTION make_months(since timestamptz, months integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    begins timestamp := date_trunc('month', since AT TIME ZONE 'UTC');
    parent record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('pisync make_months', 0));
    FOR parent IN
        SELECT c.oid, c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('events'::regclass, 'sync_events'::regclass) AND c.relkind = 'p'
    LOOP
        FOR n IN 0 .. months - 1 LOOP
            BEGIN
                EXECUTE format(
                    'CREATE TABLE IF NOT EXISTS %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)',
                    parent.relname || to_char(begins + make_interval(months => n), '_YYYYMM'), parent.relname,
                    (extract(epoch FROM begins + make_interval(months => n)) * 1000)::bigint,
                    (extract(epoch FROM begins + make_interval(months => n + 1)) * 1000)::bigint);
            EXCEPTION WHEN check_violation THEN
                NULL;  -- rows of this month lie in the rest already, and the month stays there
            END;
        END LOOP;
    END LOOP;
END $$;

DO $$
DECLARE
    parts CONSTANT integer := 8;
    parent text;
BEGIN
    FOR part IN 0 .. parts - 1 LOOP
        FOREACH parent IN ARRAY ARRAY['devices', 'streams', 'gaps', 'carried', 'origins', 'rejected', 'boots', 'crossings']
        LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                parent || '_' || part, parent, parts, part);
        END LOOP;
        -- Rows of these are changed again and again; room in each page keeps the changes off the indexes.
        EXECUTE format('ALTER TABLE %I SET (fillfactor = 70)', 'devices_' || part);
        EXECUTE format('ALTER TABLE %I SET (fillfactor = 70)', 'streams_' || part);
        FOREACH parent IN ARRAY ARRAY['events', 'sync_events'] LOOP
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS %s, REMAINDER %s) PARTITION BY RANGE (received_ms)',
                parent || '_' || part, parent, parts, part);
            -- What arrives while a clock is wrong, or before anyone made its month.
            EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', parent || '_' || part || '_rest', parent || '_' || part);
        END LOOP;
    END LOOP;
    PERFORM make_months(now(), 3);
END $$;
