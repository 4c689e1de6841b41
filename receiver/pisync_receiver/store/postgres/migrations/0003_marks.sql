-- The last group of each writer, marked in the group's own transaction: a receiver that lost the connection at the commit
-- looks here whether it was made. The transaction's number cannot tell: one that a crash or a failover undid may be
-- given to another.
CREATE TABLE marks (
    writer     text PRIMARY KEY,   -- a thread of a receiver's process, while that runs
    last_group bigint NOT NULL,
    marked_at  timestamptz NOT NULL DEFAULT now()
);
