-- Findings about a database as the source of a stream: severity, subject, problem, remedy.
WITH me AS (
  SELECT oid, rolname, rolsuper, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = current_user
), ours AS (
  SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relreplident, c.relowner, c.relrowsecurity,
         c.relforcerowsecurity, format('%I.%I', n.nspname, c.relname) AS subject
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND c.relpersistence <> 't'
    AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), here AS (
  SELECT d.oid, d.datname, d.datdba FROM pg_database d WHERE d.datname = current_database()
)
SELECT 'blocker', subject, 'updates and deletes cannot be replicated: ' || CASE relreplident
         WHEN 'n' THEN 'its replica identity is NOTHING'
         WHEN 'i' THEN 'the index of its replica identity is gone'
         ELSE 'it has no usable primary key' END,
       format('ALTER TABLE %s ADD PRIMARY KEY (…); or: ALTER TABLE %s REPLICA IDENTITY FULL', subject, subject)
FROM ours t
WHERE relkind = 'r' AND relpersistence = 'p' AND CASE relreplident
  WHEN 'f' THEN false WHEN 'n' THEN true
  WHEN 'i' THEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisreplident AND i.indisvalid)
  ELSE NOT EXISTS (SELECT FROM pg_index i
                   WHERE i.indrelid = t.oid AND i.indisprimary AND i.indisvalid AND i.indimmediate) END
UNION ALL
SELECT 'blocker', gid, 'a prepared transaction blocks the fence and outlives it',
       format('COMMIT PREPARED %L; or: ROLLBACK PREPARED %L', gid, gid)
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'blocker', subject, 'its rows are not in the WAL (unlogged) and would not move',
       format('ALTER TABLE %s SET LOGGED', subject)
FROM ours WHERE relkind = 'r' AND relpersistence = 'u'
UNION ALL
SELECT 'blocker', 'large objects', format('%s large objects: logical decoding does not carry them', count(*)),
       'move them to bytea columns, then SELECT lo_unlink(oid) FROM pg_largeobject_metadata'
FROM pg_largeobject_metadata HAVING count(*) > 0
UNION ALL
SELECT 'warning', format('pid %s', pid),
       format('its transaction is open for %s: slot creation and the fence wait for it (%s, application %L)',
              date_trunc('second', clock_timestamp() - xact_start), usename, application_name),
       format('SELECT pg_terminate_backend(%s)', pid)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - interval '1 minute'
UNION ALL
SELECT 'warning', usename::text, 'its sessions are superuser: they can go round the fence by session_replication_role',
       format('ALTER ROLE %I NOSUPERUSER, or let the application use another role', usename)
FROM (SELECT DISTINCT a.usename FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
      WHERE a.datname = current_database() AND r.rolsuper AND a.pid <> pg_backend_pid()
        AND coalesce(a.backend_type = 'client backend', true)
        AND coalesce(a.application_name, '') NOT LIKE 'godwit%') s
UNION ALL
SELECT 'warning', s.subname::text, 'a subscription writes to this database, and its worker passes the fence',
       format('ALTER SUBSCRIPTION %I DISABLE', s.subname)
FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM here) AND s.subenabled
UNION ALL
SELECT 'warning', subject, CASE relkind
         WHEN 'm' THEN 'a materialized view is not replicated: it is as old as the copy until refreshed'
         ELSE 'a foreign table is not replicated: only its definition moves' END,
       CASE relkind WHEN 'm' THEN format('REFRESH MATERIALIZED VIEW %s on the target, after the move', subject) END
FROM ours WHERE relkind IN ('m', 'f')
UNION ALL
SELECT 'blocker', subject, format('role %I does not own it: the fence trigger cannot be put on and taken off', rolname),
       format('GRANT %I TO %I', pg_get_userbyid(relowner), rolname)
FROM ours, me WHERE relkind IN ('r', 'p') AND NOT pg_has_role(relowner, 'USAGE')
UNION ALL
SELECT 'blocker', subject, format('row security hides rows from role %I: the copy would lack them', rolname),
       format('ALTER ROLE %I BYPASSRLS', rolname)
FROM ours, me
WHERE relkind IN ('r', 'p') AND relrowsecurity AND NOT rolsuper AND NOT rolbypassrls
  AND (relforcerowsecurity OR NOT pg_has_role(relowner, 'USAGE'))
UNION ALL
SELECT 'blocker', rolname::text, 'may not replicate', format('ALTER ROLE %I REPLICATION', rolname)
FROM me WHERE NOT rolsuper AND NOT rolreplication
UNION ALL
SELECT 'blocker', datname::text, format('role %I does not own the database: CONNECT cannot be taken away', rolname),
       format('GRANT %I TO %I', pg_get_userbyid(datdba), rolname)
FROM me, here WHERE NOT pg_has_role(datdba, 'USAGE')
UNION ALL
SELECT 'blocker', rolname::text, 'may not end other sessions', format('GRANT pg_signal_backend TO %I', rolname)
FROM me WHERE NOT rolsuper AND NOT pg_has_role('pg_signal_backend', 'USAGE')
UNION ALL
SELECT 'warning', rolname::text, 'may not see who holds a lock', format('GRANT pg_read_all_stats TO %I', rolname)
FROM me WHERE NOT rolsuper AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
UNION ALL
SELECT 'warning', datname::text, format('its encoding is %s', pg_encoding_to_char(encoding)),
       'the target database must have the same encoding'
FROM pg_database WHERE datname = current_database() AND pg_encoding_to_char(encoding) <> 'UTF8'
