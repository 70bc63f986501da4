-- Findings about a server in either part: severity, subject, problem, remedy. Both parts send and receive in turn.
WITH setting AS (
  SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', 'max_wal_senders')
), room AS (
  SELECT name, setting::bigint - (SELECT count(*) FROM pg_replication_slots) AS free, setting::bigint AS size,
         'replication slots' AS what
  FROM setting WHERE name = 'max_replication_slots'
  UNION ALL
  SELECT name, setting::bigint - (SELECT count(*) FROM pg_stat_get_wal_senders()), setting::bigint, 'walsenders'
  FROM setting WHERE name = 'max_wal_senders'
), sessions AS (
  SELECT count(*) FILTER (WHERE datid IS NOT NULL) AS there, count(*) FILTER (WHERE usename = current_user) AS of_role,
         count(*) FILTER (WHERE datname = current_database()) AS of_database,
         {{connections}} - count(*) FILTER (WHERE datname = current_database() AND usename = current_user) AS wanted
  FROM pg_stat_activity
), seats AS (
  SELECT 'max_connections' AS name, there AS taken, current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
           - coalesce(current_setting('reserved_connections', true), '0')::bigint AS size,
         'ALTER SYSTEM SET max_connections = %s; then restart the server' AS remedy FROM sessions
  UNION ALL
  SELECT format('role %s', rolname), of_role, rolconnlimit, format('ALTER ROLE %I CONNECTION LIMIT %%s', rolname)
  FROM sessions, pg_roles WHERE rolname = current_user AND rolconnlimit >= 0 AND NOT rolsuper
  UNION ALL
  SELECT format('database %s', datname), of_database, datconnlimit, format('ALTER DATABASE %I CONNECTION LIMIT %%s', datname)
  FROM sessions, pg_database WHERE datname = current_database() AND datconnlimit >= 0
), locks AS (
  SELECT {{locks}} AS room, {{relations}} AS needed
)
SELECT 'blocker', 'wal_level', format('is %s: logical decoding needs logical', setting),
       -- Who may not alter the system sets it where the service says so.
       CASE WHEN to_regrole('rds_superuser') IS NOT NULL THEN 'rds.logical_replication = 1 in the parameter group; then reboot the server'
         WHEN to_regrole('cloudsqlsuperuser') IS NOT NULL THEN 'the flag cloudsql.logical_decoding = on'
         WHEN to_regrole('azure_pg_admin') IS NOT NULL THEN 'wal_level = logical among the server parameters; then restart the server'
         ELSE 'ALTER SYSTEM SET wal_level = logical; then restart the server' END
FROM setting WHERE name = 'wal_level' AND setting <> 'logical'
UNION ALL
SELECT CASE WHEN free < 1 THEN 'blocker' ELSE 'warning' END, name,
       format('%s of %s %s free; a cutover needs 2', greatest(free, 0), size, what),
       format('ALTER SYSTEM SET %s = %s; then restart the server', name, size + 2)
FROM room WHERE free < 2
UNION ALL
SELECT 'warning', name, format('%s of %s connections free; Godwit may want %s more', greatest(size - taken, 0), size, wanted),
       -- What is kept for others of all connections stays so.
       format(remedy, CASE name WHEN 'max_connections' THEN current_setting(name)::bigint - size ELSE 0 END + taken + wanted)
FROM seats, sessions WHERE size - taken < wanted
UNION ALL
SELECT 'blocker', 'server', 'is in recovery: a standby can be neither source nor target', 'SELECT pg_promote()'
WHERE pg_is_in_recovery()
UNION ALL
SELECT 'blocker', 'server version', format('%s is too old', current_setting('server_version')), 'upgrade to 14 or later'
WHERE current_setting('server_version_num')::int < 140000
UNION ALL
SELECT 'blocker', datname::text, format('role %I may not create schema godwit in it', current_user),
       format('GRANT CREATE ON DATABASE %I TO %I', datname, current_user)
FROM pg_database
WHERE datname = current_database() AND NOT has_database_privilege(datname, 'CREATE')
  AND NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'godwit' AND pg_has_role(nspowner, 'USAGE'))
UNION ALL
SELECT CASE WHEN needed > room THEN 'blocker' ELSE 'warning' END, 'max_locks_per_transaction',
       format('the dump of the schema and the fence lock %s tables, views and sequences at once, and there is room for about %s locks of all sessions', needed, room),
       format('ALTER SYSTEM SET max_locks_per_transaction = %s; then restart the server',
         ceil(2.1 * needed / room * current_setting('max_locks_per_transaction')::int))
FROM locks WHERE needed > room / 2
