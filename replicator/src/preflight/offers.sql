-- What the target lacks of what the source's database makes use of (needs.sql): severity, subject, problem, remedy.
WITH need AS (
  SELECT * FROM jsonb_to_recordset({{needs}}::jsonb) AS n(kind text, subject text, value text, role text)
), here AS (
  SELECT oid, datname, encoding FROM pg_database WHERE datname = current_database()
), known AS (
  -- One of ICU's is listed even by a server that is built without it.
  SELECT c.*, format('%I.%I', n.nspname, c.collname) AS name
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
  WHERE c.collprovider <> 'i' OR EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i' AND collname <> 'unicode')
), setting AS (
  SELECT kind, subject AS name, value, role,
         -- A list is written as it is kept.
         CASE WHEN subject IN ('search_path', 'temp_tablespaces', 'local_preload_libraries', 'session_preload_libraries')
              THEN value ELSE quote_literal(value) END AS written,
         CASE WHEN role IS NULL THEN format('DATABASE %I', datname) WHEN kind = 'role setting' THEN format('ROLE %I', role)
              ELSE format('ROLE %I IN DATABASE %I', role, datname) END AS place
  FROM need, here
), held AS (
  SELECT CASE WHEN s.setdatabase = 0 THEN 'role setting' ELSE 'database setting' END AS kind, r.rolname AS role,
         split_part(entry, '=', 1) AS name, substr(entry, strpos(entry, '=') + 1) AS value
  FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) entry LEFT JOIN pg_roles r ON r.oid = s.setrole
  WHERE s.setdatabase IN (0, (SELECT oid FROM here))
)
SELECT 'blocker', 'collation ' || value, format('%s uses it on the source; the target does not have it', subject),
       'install its locale on the target''s server (of ICU: a server built with that), then SELECT pg_import_system_collations(''pg_catalog''); or use one that both have'
FROM need
WHERE kind = 'collation' AND NOT EXISTS (SELECT FROM known, here WHERE name = value AND collencoding IN (-1, encoding))
UNION ALL
SELECT 'blocker', subject, CASE value WHEN 'i' THEN 'is of ICU, which the target''s server is built without'
         ELSE 'is a builtin one, which the target''s server does not know' END,
       CASE value WHEN 'i' THEN 'a target whose server is built with ICU' ELSE 'a target of version 17 or later' END
FROM need
WHERE kind = 'provider' AND NOT EXISTS (SELECT FROM known WHERE collprovider::text = value)
UNION ALL
SELECT 'blocker', subject, 'is compressed by lz4, which the target''s server is built without',
       'ALTER TABLE … ALTER COLUMN … SET COMPRESSION pglz on the source, or a target whose server is built with lz4'
FROM need
WHERE kind = 'compression'
  AND NOT EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND value = ANY (enumvals))
UNION ALL
SELECT 'blocker', subject, 'is of XML, which the target''s server is built without', 'a target whose server is built with libxml'
FROM need WHERE kind = 'xml' AND NOT '{{xml}}'::boolean
UNION ALL
SELECT 'blocker', subject, format('version %s of the target does not know that', split_part(current_setting('server_version'), ' ', 1)),
       format('a target of version %s or later', value::int / 10000)
FROM need WHERE kind = 'version' AND current_setting('server_version_num')::int < value::int
UNION ALL
SELECT 'blocker', value, CASE kind WHEN 'role' THEN 'the source''s objects belong to this role or let it do something; the target does not have it'
         ELSE format('may log in on the source, as a member of %I; the target does not have it', subject) END,
       format('CREATE ROLE %I on the target (LOGIN and its password as on the source)', value)
FROM need WHERE kind IN ('role', 'client') AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = value)
UNION ALL
SELECT 'blocker', role, format('is a member of %I on the source and not on the target', value),
       CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = value) THEN '' ELSE format('CREATE ROLE %I; ', value) END
         || format('GRANT %I TO %I on the target', value, role)
FROM need
WHERE kind = 'member' AND EXISTS (SELECT FROM pg_roles WHERE rolname = role)
  AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member
                  WHERE g.rolname = value AND r.rolname = role)
UNION ALL
-- A fence has taken CONNECT and gives it back.
SELECT 'blocker', role, format('has %s on the database of the source and not on the target''s', value),
       format('GRANT %s ON DATABASE %I TO %I on the target', value, datname, role)
FROM need, here
WHERE kind = 'right' AND NOT (value = 'CONNECT' AND '{{fenced}}'::boolean)
  AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role AND NOT has_database_privilege(r.oid, here.oid, value))
UNION ALL
SELECT 'blocker', role, 'passes row security on the source and not on the target', format('ALTER ROLE %I BYPASSRLS on the target', role)
FROM need WHERE kind = 'bypass' AND EXISTS (SELECT FROM pg_roles WHERE rolname = role AND NOT rolbypassrls AND NOT rolsuper)
UNION ALL
SELECT 'blocker', value, format('owns something on the source, and role %I is no member of it on the target: the copy could not give it what it makes', current_user),
       format('GRANT %I TO %I on the target', value, current_user)
FROM need WHERE kind = 'owner' AND EXISTS (SELECT FROM pg_roles WHERE rolname = value AND NOT rolsuper AND NOT pg_has_role(oid, 'USAGE'))
UNION ALL
SELECT 'blocker', 'server ' || quote_ident(subject), format('its owner %I may not use foreign data wrapper %I on the target: the copy would stop there', role, value),
       format('GRANT USAGE ON FOREIGN DATA WRAPPER %I TO %I on the target', value, role)
FROM need JOIN pg_roles r ON r.rolname = role JOIN pg_foreign_data_wrapper w ON w.fdwname = value
WHERE kind = 'wrapper' AND NOT has_foreign_data_wrapper_privilege(r.oid, w.oid, 'USAGE')
UNION ALL
SELECT 'warning', role, format('has %s on %s on the source and not on the target: a copy leaves that, since only a superuser may grant it', value, subject),
       format('GRANT %s ON %s TO %I on the target', value, subject, role)
FROM need JOIN pg_roles r ON r.rolname = role, LATERAL (SELECT substr(subject, strpos(subject, ' ') + 1) AS name) o
WHERE CASE WHEN kind <> 'server right' THEN false
        WHEN subject LIKE 'TABLE %' THEN NOT has_table_privilege(r.oid, to_regclass(o.name), value)
        ELSE NOT has_function_privilege(r.oid, to_regprocedure(o.name), value) END
UNION ALL
SELECT 'blocker', role, format('has %s on %s%s on the source and not on the target: a copy leaves that, since only a superuser may grant it', value,
         min(subject), CASE WHEN count(*) > 1 THEN format(' and on %s more', count(*) - 1) ELSE '' END),
       string_agg(format('GRANT %s ON %s TO %s', value, subject, CASE role WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(role) END), '; ' ORDER BY subject)
         || ' on the target'
-- Names are not looked up: that needs USAGE on their schema.
FROM need JOIN (
{{objects}}
) o ON o.name = subject
WHERE kind = 'owner''s right' AND (role = 'public' OR EXISTS (SELECT FROM pg_roles WHERE rolname = role)) AND CASE
    WHEN kind <> 'owner''s right' THEN false
    WHEN o.of = 'pg_namespace'::regclass THEN NOT has_schema_privilege(role, o.oid, value)
    WHEN subject LIKE 'SEQUENCE %' THEN NOT has_sequence_privilege(role, o.oid, value)
    WHEN o.of = 'pg_class'::regclass THEN NOT has_table_privilege(role, o.oid, value)
    WHEN o.of = 'pg_proc'::regclass THEN NOT has_function_privilege(role, o.oid, value)
    ELSE NOT has_server_privilege(role, o.oid, value) END
GROUP BY role, value, split_part(subject, ' ', 1)
UNION ALL
SELECT 'warning', subject, 'default privileges are not the same on the target: a copy leaves them, since Godwit''s role is no member of that role',
       value || ' on the target'
FROM need n
WHERE kind = 'default privileges' AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.role)
  AND NOT EXISTS (SELECT FROM ({{defaults}}) d WHERE d.sql = n.value)
UNION ALL
SELECT 'warning', 'library ' || value, format('is loaded by %s on the source and not on the target', subject),
       format('ALTER SYSTEM SET %s = %s on the target; then restart the server', subject, concat_ws(', ', nullif(reset_val, ''), quote_literal(value)))
FROM need JOIN pg_settings ON name = subject
WHERE kind = 'library' AND value <> ALL (string_to_array(replace(reset_val, ' ', ''), ','))
UNION ALL
-- What the source's code may call, an older one need not have.
SELECT 'warning', 'extension ' || quote_ident(role), format('is of version %s on the source, and would be of %s on the target', value, there),
       CASE WHEN extversion IS NOT NULL AND EXISTS (SELECT FROM pg_available_extension_versions v WHERE v.name = role AND v.version = value)
         THEN format('ALTER EXTENSION %I UPDATE TO %L on the target', role, value)
         ELSE format('install the package of version %s on the target''s server, where there is one of its major version', value) END
FROM need JOIN pg_available_extensions a ON a.name = role LEFT JOIN pg_extension e ON e.extname = a.name,
     LATERAL (SELECT coalesce(extversion, a.default_version) AS there) t
WHERE kind = 'extension' AND there ~ '^[0-9]+(\.[0-9]+)*$'
  AND CASE WHEN kind = 'extension' THEN string_to_array(there, '.')::int[] < string_to_array(value, '.')::int[] ELSE false END
UNION ALL
-- Of all of these only one keeps the service from going on.
SELECT CASE WHEN read_only THEN 'blocker' ELSE 'warning' END, name,
       format('sessions begin with %s on the source and with %s on the target%s', quote_literal(value), quote_literal(reset_val),
         CASE WHEN read_only THEN ': after a move they could not write' END),
       format('ALTER DATABASE %I SET %s TO %s on the target', datname, name, written)
FROM setting JOIN pg_settings USING (name), here, LATERAL (SELECT name = 'default_transaction_read_only' AND reset_val = 'on' AS read_only) o
WHERE kind = 'default' AND reset_val IS DISTINCT FROM value
UNION ALL
SELECT 'warning', name, format('is %s on the source and only %s on the target', value, reset_val),
       format('ALTER SYSTEM SET %s = %s on the target; then restart the server', name, value)
FROM setting JOIN pg_settings USING (name) WHERE kind = 'room' AND reset_val::bigint < value::bigint
UNION ALL
SELECT 'blocker', 'max_locks_per_transaction',
       format('a fence will lock %s tables and more at once; on the target there is room for about %s locks of all sessions', value, room),
       format('ALTER SYSTEM SET max_locks_per_transaction = %s on the target; then restart the server',
         ceil(2.1 * value::bigint / room * current_setting('max_locks_per_transaction')::int))
FROM need, (SELECT {{locks}} AS room) locks WHERE kind = 'locks' AND value::bigint > room
UNION ALL
-- Its function comes with the copy.
SELECT CASE WHEN to_regprocedure(role) IS NULL THEN 'warning' ELSE 'blocker' END, format('event trigger %I', subject),
       'the target has none like the source''s: a copy leaves them, since only a superuser may make one',
       format('%s%s on the target%s', CASE WHEN EXISTS (SELECT FROM pg_event_trigger WHERE evtname = subject) THEN format('DROP EVENT TRIGGER %I; ', subject) END,
         value, CASE WHEN to_regprocedure(role) IS NULL THEN ', once the copy is made' END)
FROM need n WHERE kind = 'event trigger' AND NOT EXISTS (SELECT FROM ({{event_triggers}}) e WHERE e.name = n.subject AND e.sql = n.value)
UNION ALL
SELECT 'warning', subject, format('a logical slot (%s) that is not Godwit''s: whoever reads changes from it at the database itself stays there with a move', value),
       'let its reader connect to the PostgreSQL front of the service: the slot goes with the primary then'
FROM need WHERE kind = 'slot' AND NOT EXISTS (SELECT FROM pg_replication_slots s, here WHERE s.slot_name = subject AND s.database = datname)
UNION ALL
SELECT 'warning', subject, 'a publication of all tables, or of schemas: the target does not have it, and only a superuser may make one',
       format('%s on the target, once the copy is made', value)
FROM need WHERE kind = 'publication' AND NOT EXISTS (SELECT FROM pg_publication WHERE format('%I', pubname) = subject)
UNION ALL
SELECT 'warning', subject, format('is %s on the source and off on the target: %s', n.value, CASE subject
         WHEN 'archive_mode' THEN 'after a move nobody keeps the WAL, and no backup can be brought up to a moment'
         WHEN 'ssl' THEN 'clients that demand TLS of the server cannot connect to it'
         WHEN 'fsync' THEN 'what is committed there is lost or broken when the machine stops'
         WHEN 'full_page_writes' THEN 'what is written there may be broken when the machine stops'
         ELSE 'nobody vacuums its tables or makes their statistics' END),
       format('ALTER SYSTEM SET %s = %L on the target%s; then %s the server', subject, n.value,
         CASE subject WHEN 'archive_mode' THEN ', with its archive_command' WHEN 'ssl' THEN ', with a certificate and its key' ELSE '' END,
         CASE context WHEN 'postmaster' THEN 'restart' ELSE 'reload' END)
FROM need n JOIN pg_settings s ON s.name = n.subject WHERE n.kind = 'switch' AND s.reset_val = 'off'
UNION ALL
SELECT 'warning', subject, 'follows the source''s server, and nobody follows the target''s: after a move it stays as it was before, for those who read there and those who would fail over to it',
       'make standbys of the target''s server before the move'
FROM need WHERE kind = 'standby' AND NOT EXISTS (
  SELECT FROM pg_stat_replication r WHERE r.state IN ('streaming', 'catchup')
    AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))
UNION ALL
-- What sessions begin with has been compared already.
SELECT 'warning', s.name, format('is %L on the source by ALTER %s, %s on the target', s.value, place, coalesce(quote_literal(held.value), 'not set so')),
       format('ALTER %s SET %s TO %s on the target', place, s.name, written)
FROM setting s LEFT JOIN held ON held.kind = s.kind AND held.name = s.name AND held.role IS NOT DISTINCT FROM s.role
WHERE s.kind IN ('role setting', 'database setting') AND held.value IS DISTINCT FROM s.value
  AND NOT (s.role IS NULL AND s.name IN (SELECT subject FROM need WHERE kind = 'default'))
