#!/bin/bash
# Makes the node's role and its database, once, when the volume is empty. The role is no superuser.
set -euo pipefail
psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
\set password `cat /run/secrets/database-password`
CREATE ROLE amphora LOGIN PASSWORD :'password';
CREATE DATABASE amphora OWNER amphora ENCODING 'UTF8' TEMPLATE template0;
SQL
