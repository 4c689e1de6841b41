-- Let a part of the devices live on another server. PostgreSQL attaches no foreign table to a parent that has a unique
-- index, so the keys of the parents become keys of their eight parts, which have them already. No table is rewritten;
-- each is read once, to see that its rows belong there.

-- Readers lock events before devices; writers, which lock devices first, try again where that is a deadlock.
SET LOCAL lock_timeout = '30s';
LOCK TABLE events, sync_events, devices, streams, gaps, carried, origins, rejected, boots, crossings
    IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    parts CONSTANT integer := 8;
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY[
        'devices', 'streams', 'gaps', 'carried', 'origins', 'rejected', 'boots', 'crossings', 'events', 'sync_events'
    ] LOOP
        FOR part IN 0 .. parts - 1 LOOP
            EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, parent || '_' || part);
        END LOOP;
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', parent, parent || '_pkey');
        FOR part IN 0 .. parts - 1 LOOP
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                parent, parent || '_' || part, parts, part);
        END LOOP;
    END LOOP;
END $$;

-- Another server commits its part of a transaction first, and this one may fail after that. The ids of such events are
-- given to no others: a sequence is not rolled back. It may fall behind when its server crashes, though, so after each
-- start it is compared with what is stored.
CREATE SEQUENCE event_ids MINVALUE 0;
SELECT setval('event_ids', last) FROM arrival_counter;
ALTER TABLE arrival_counter ADD COLUMN server_started timestamptz;

-- So many ids, which become visible with this commit and in their order: the counter's row is locked until then. The
-- last id given before them.
CREATE FUNCTION take_event_ids(wanted bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    counter arrival_counter;
    given bigint;
    this_hour CONSTANT bigint := floor(extract(epoch FROM clock_timestamp()) / 3600);
BEGIN
    SELECT * INTO counter FROM arrival_counter WHERE one = 1 FOR UPDATE;
    SELECT last_value INTO given FROM event_ids;
    IF counter.server_started IS DISTINCT FROM pg_postmaster_start_time() THEN
        given := greatest(given, counter.last, (SELECT max(id) FROM events));
    END IF;
    IF given > counter.last THEN
        -- Some were given and not committed here. Those that another server committed have arrived since the last
        -- hour that is known.
        INSERT INTO arrivals (hour, first_id, last_id)
        SELECT hour, counter.last + 1, given
        FROM generate_series(least((SELECT max(hour) FROM arrivals), this_hour - 1), this_hour) AS hour
        ON CONFLICT (hour) DO UPDATE SET
            first_id = least(arrivals.first_id, excluded.first_id), last_id = greatest(arrivals.last_id, excluded.last_id);
    END IF;
    PERFORM setval('event_ids', given + wanted);
    UPDATE arrival_counter SET last = given + wanted, server_started = pg_postmaster_start_time() WHERE one = 1;
    RETURN given;
END $$;
