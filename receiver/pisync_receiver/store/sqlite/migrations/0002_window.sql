-- What the admin's window shows and changes: states and who was told of them, daily sums, sites, notes, sessions,
-- the audit log, erased learners. As in 0001, columns stand in the order of the structs in domain/rows.py.

ALTER TABLE devices ADD COLUMN sync_asked_ms INTEGER;  -- an admin asked for a sync; NULL again after the next contact
ALTER TABLE devices ADD COLUMN changed_ms INTEGER;     -- when an admin or an enrollment last changed it

ALTER TABLE tokens ADD COLUMN parent_id INTEGER;         -- a session: the token that opened it
ALTER TABLE tokens ADD COLUMN session_until_ms INTEGER;  -- a session: it ends then, however busy it is

CREATE INDEX tokens_by_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX tokens_refused ON tokens (device_id) WHERE last_refused_ms IS NOT NULL;
CREATE INDEX sessions_by_end ON tokens (session_until_ms) WHERE session_until_ms IS NOT NULL;

-- What an admin set for a site; a site is there as soon as a device is at it.
CREATE TABLE sites (
    site            TEXT PRIMARY KEY,
    silent_after_ms INTEGER,          -- NULL: as the receiver's setting says
    changed_ms      INTEGER NOT NULL  -- when it was set
) STRICT, WITHOUT ROWID;

-- Daily sums, kept at intake (domain/sums.py). `day` counts from 1970 (UTC): of events by their best time, of sync
-- events by their effective time. `site` is '' where there is none, and so are `name` and `object`. What is counted, and
-- what they say:
--   run     runs, failed or files          sync events, those with errors, files that they synced
--   error   code                           errors by code
--   speed   upper bound of a range, kbit/s sync events that measured a speed
--   delay   upper bound of a range, hours  events by how long after their best time they arrived, on the day of arrival
--   type    event type                     events
--   object  event type, object id          events about an object
CREATE TABLE sums (
    what   TEXT NOT NULL,
    day    INTEGER NOT NULL,
    site   TEXT NOT NULL,
    name   TEXT NOT NULL,
    object TEXT NOT NULL,
    count  INTEGER NOT NULL,  -- at most 2^53 - 1; 0 when all of it moved to another day
    PRIMARY KEY (what, day, site, name, object)
) STRICT, WITHOUT ROWID;

-- What groups added to the sums, and is not in them yet: a row a group, the JSON of its `rows.Sums`.
CREATE TABLE sum_additions (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    body TEXT NOT NULL
) STRICT;

-- The state that a device was last seen in, and the changes of it. Notices are made of the changes.
CREATE TABLE watched (
    device_id    TEXT PRIMARY KEY,
    state        TEXT NOT NULL,
    silent_at_ms INTEGER  -- of a silent device: when its silence was too long, as its last contact and its site's limit say
) STRICT, WITHOUT ROWID;

CREATE TABLE transitions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id   TEXT NOT NULL,
    site        TEXT,
    before      TEXT NOT NULL,     -- 'new' also for a device that was not watched before
    state       TEXT NOT NULL,
    at_ms       INTEGER NOT NULL,  -- when it was noticed
    since_ms    INTEGER,           -- when it began
    errors      TEXT,              -- the error counts of the newest failure, as JSON text
    notified_ms INTEGER            -- when a notice covered it, or when it was noticed if no notice has to; NULL until then
) STRICT;

CREATE INDEX transitions_pending ON transitions (id) WHERE notified_ms IS NULL;
CREATE INDEX transitions_by_time ON transitions (at_ms);

-- Messages to operators, one row for the log and one for each service that it goes to.
CREATE TABLE notices (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    target           TEXT NOT NULL,     -- 'log', or a hash of the service's URL, which holds secrets
    service          TEXT NOT NULL,     -- what people call the target
    kind             TEXT NOT NULL,     -- 'change' of a device or a site, 'digest' of many, 'daily'
    title            TEXT NOT NULL,
    body             TEXT NOT NULL,
    made_ms          INTEGER NOT NULL,
    claimed_until_ms INTEGER,           -- a receiver is sending it and has until then
    sent_ms          INTEGER            -- NULL until its service took it
) STRICT;

CREATE INDEX notices_pending ON notices (target, id) WHERE sent_ms IS NULL;
CREATE INDEX notices_by_age ON notices (made_ms);

-- What people wrote about a device or a site.
CREATE TABLE notes (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id TEXT,
    site      TEXT,
    at_ms     INTEGER NOT NULL,
    author    TEXT,
    text      TEXT NOT NULL
) STRICT;

CREATE INDEX notes_by_device ON notes (device_id) WHERE device_id IS NOT NULL;
CREATE INDEX notes_by_site ON notes (site) WHERE site IS NOT NULL;

-- Who did what, and from where. Each row's hash covers the row before it (domain/audit.py).
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY,
    at_ms    INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    token_id INTEGER,
    address  TEXT,
    act      TEXT NOT NULL,
    target   TEXT,
    detail   TEXT NOT NULL,
    hash     TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_target ON audit (target) WHERE target IS NOT NULL;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

-- Learners whose events were erased, by keyed hashes (domain/erasure.py): what arrives of them later is accounted for
-- and not stored.
CREATE TABLE erased (
    learner  TEXT PRIMARY KEY,  -- of home and id
    id       TEXT NOT NULL,     -- of the id alone
    receipt  TEXT NOT NULL,     -- one for all homes that were erased together
    asked_ms INTEGER NOT NULL,
    done_ms  INTEGER,           -- NULL while rows are being deleted
    events   INTEGER NOT NULL,  -- how many were deleted
    rejected INTEGER NOT NULL   -- how many bodies of rejected events and conflicting versions were emptied
) STRICT, WITHOUT ROWID;

CREATE INDEX erased_by_id ON erased (id);

-- Copies of an event go with it.
CREATE INDEX carried_by_place ON carried (stored_device_id, stored_stream, stored_seq);

-- Keys of this database's own.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The sums of what is stored already; those of events without an object are under '' until the last statement.
INSERT INTO sums SELECT 'object', max(best_ms / 86400000, 0), coalesce(site, ''), type, coalesce(object_id, ''), count(*)
FROM events NOT INDEXED GROUP BY 2, 3, 4, 5;

INSERT INTO sums SELECT 'type', day, site, name, '', sum(count) FROM sums WHERE what = 'object' GROUP BY day, site, name;

DELETE FROM sums WHERE what = 'object' AND object = '';

INSERT INTO sums
SELECT 'delay', max(received_ms / 86400000, 0), coalesce(site, ''),
       CASE WHEN received_ms - best_ms <= 3600000 THEN '1' WHEN received_ms - best_ms <= 21600000 THEN '6'
            WHEN received_ms - best_ms <= 86400000 THEN '24' WHEN received_ms - best_ms <= 259200000 THEN '72'
            WHEN received_ms - best_ms <= 604800000 THEN '168' WHEN received_ms - best_ms <= 2592000000 THEN '720'
            ELSE 'more' END,
       '', count(*)
FROM events NOT INDEXED GROUP BY 2, 3, 4;

INSERT INTO sums SELECT 'run', max(at_ms / 86400000, 0), coalesce(site, ''), 'runs', '', count(*)
FROM sync_events NOT INDEXED GROUP BY 2, 3;

INSERT INTO sums SELECT 'run', max(at_ms / 86400000, 0), coalesce(site, ''), 'failed', '', count(*)
FROM sync_events NOT INDEXED WHERE total_errors > 0 GROUP BY 2, 3;

INSERT INTO sums
SELECT 'run', max(at_ms / 86400000, 0), coalesce(site, ''), 'files', '',
       CAST(min(total(total_files_synced), 9007199254740991) AS INTEGER)
FROM sync_events NOT INDEXED WHERE total_files_synced > 0 GROUP BY 2, 3;

INSERT INTO sums
SELECT 'speed', max(at_ms / 86400000, 0), coalesce(site, ''),
       CASE WHEN internet_speed <= 0.064 THEN '64' WHEN internet_speed <= 0.128 THEN '128'
            WHEN internet_speed <= 0.256 THEN '256' WHEN internet_speed <= 0.512 THEN '512'
            WHEN internet_speed <= 1 THEN '1000' WHEN internet_speed <= 2 THEN '2000'
            WHEN internet_speed <= 5 THEN '5000' WHEN internet_speed <= 10 THEN '10000'
            WHEN internet_speed <= 50 THEN '50000' ELSE 'more' END,
       '', count(*)
FROM sync_events NOT INDEXED WHERE internet_speed > 0 GROUP BY 2, 3, 4;

INSERT INTO sums
SELECT 'error', max(at_ms / 86400000, 0), coalesce(site, ''), code.key, '',
       CAST(min(total(code.value), 9007199254740991) AS INTEGER)
FROM sync_events NOT INDEXED CROSS JOIN json_each(errors) AS code
WHERE errors LIKE '{%' AND code.value > 0 GROUP BY 2, 3, 4;
