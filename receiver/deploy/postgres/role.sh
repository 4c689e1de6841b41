#!/bin/sh
# Run by the image once, for an empty volume: the receivers' role and its database. The role is no superuser.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --set password="$DATABASE_PASSWORD" \
    --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'END'
CREATE ROLE pisync LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION;
CREATE DATABASE pisync OWNER pisync;
REVOKE ALL ON DATABASE pisync FROM PUBLIC;
END
