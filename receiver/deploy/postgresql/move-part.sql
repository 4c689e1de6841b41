-- Moves one of the eight parts of the devices, with all that is kept by device, to another PostgreSQL by postgres_fdw.
--
-- There, an empty database with the same schema:
--     pisync-receiver migrate --database-url postgresql://pisync@north.example/pisync
--
-- Here, as a superuser:
--     CREATE EXTENSION postgres_fdw;
--     CREATE SERVER north FOREIGN DATA WRAPPER postgres_fdw OPTIONS (
--         host 'north.example', dbname 'pisync', sslmode 'verify-full', connect_timeout '5', tcp_user_timeout '10000',
--         batch_size '1000', fetch_size '1000');
--     CREATE USER MAPPING FOR pisync SERVER north OPTIONS (user 'pisync', password '…');
--     GRANT USAGE ON FOREIGN SERVER north TO pisync;
--
-- Here, as the role that owns the tables, with this file read (psql -f move-part.sql):
--     SELECT * FROM move_part(3, 'north');
--
-- It is one transaction: nobody writes meanwhile, receivers answer 503, and what fails has changed nothing here. Rows
-- are compared one by one before anything counts, by sorting both sides, which takes room for temporary files here. The
-- tables that were moved stay beside the new ones, as devices_3_moved and so on, until a person drops them. Every role
-- that reads or writes needs a user mapping of its own.

CREATE OR REPLACE FUNCTION move_part(part integer, server text) RETURNS TABLE (moved text, row_count bigint)
LANGUAGE plpgsql SET lock_timeout = '10s' AS $$
DECLARE
    parents CONSTANT text[] := ARRAY[
        'devices', 'streams', 'gaps', 'carried', 'origins', 'rejected', 'boots', 'crossings', 'events', 'sync_events'];
    parent text;
    rule pg_constraint;
    there bigint;
    differences bigint;
BEGIN
    LOCK TABLE events, sync_events, devices, streams, gaps, carried, origins, rejected, boots, crossings
        IN ACCESS EXCLUSIVE MODE;
    FOREACH parent IN ARRAY parents LOOP
        moved := parent || '_' || part;
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, moved);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', moved, moved || '_moved');
        EXECUTE format('IMPORT FOREIGN SCHEMA public LIMIT TO (%I) FROM SERVER %I INTO %I',
            moved, server, current_schema());
        EXECUTE format('SELECT count(*) FROM %I', moved) INTO there;
        IF there > 0 THEN
            RAISE EXCEPTION '% on server % has % rows already; nothing was changed here', moved, server, there
            USING HINT = 'See whose they are. Those of an attempt that broke off are here too; empty the table there.';
        END IF;
        RAISE NOTICE 'moving %', moved;
        EXECUTE format('INSERT INTO %I SELECT * FROM %I', moved, moved || '_moved');
        GET DIAGNOSTICS row_count = ROW_COUNT;
        EXECUTE format('SELECT count(*) FROM %I', moved) INTO there;
        EXECUTE format('SELECT count(*) FROM (TABLE %I EXCEPT ALL TABLE %I) AS lacking', moved || '_moved', moved)
        INTO differences;
        IF there <> row_count OR differences > 0 THEN
            RAISE EXCEPTION '% has % rows here and % on server %, of which % differ; nothing was changed here',
                moved, row_count, there, server, differences;
        END IF;
        FOR rule IN SELECT * FROM pg_constraint WHERE conrelid = parent::regclass AND contype = 'c' LOOP
            EXECUTE format('ALTER FOREIGN TABLE %I ADD CONSTRAINT %I %s', moved, rule.conname, pg_get_constraintdef(rule.oid));
        END LOOP;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES WITH (MODULUS 8, REMAINDER %s)',
            parent, moved, part);
        RETURN NEXT;
    END LOOP;
END $$;
