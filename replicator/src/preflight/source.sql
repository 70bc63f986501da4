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
        AND NOT {{passing}}
    -- While they are copied keys and indexes are still to come.
    AND NOT '{{copying}}'::boolean
), owned AS (
{{owned}}
  UNION ALL
  SELECT lomowner, format('large object %s', min(oid)), NULL FROM pg_largeobject_metadata GROUP BY lomowner
), here AS (
  SELECT d.oid, d.datname, d.datdba FROM pg_database d WHERE d.datname = current_database()
)
SELECT CASE WHEN '{{keyless_are}}' = 'identified' THEN 'warning' ELSE 'blocker' END, subject, 'updates and deletes ' || CASE WHEN EXISTS (
         SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
         WHERE r.prrelid = t.oid AND p.pubname ~ '^godwit_' AND (p.pubupdate OR p.pubdelete)
       ) THEN 'fail, whoever asks for them, since the table is published: ' ELSE 'cannot be replicated: ' END || CASE relreplident
         WHEN 'n' THEN 'its replica identity is NOTHING'
         WHEN 'i' THEN 'the index of its replica identity is gone'
         ELSE 'it has no usable primary key' END,
       -- What a key would be, an index of columns that are never NULL is as well.
       format('ALTER TABLE %s %s; or: ALTER TABLE %s REPLICA IDENTITY FULL', subject, coalesce('REPLICA IDENTITY USING INDEX ' || {{telling_index}}, 'ADD PRIMARY KEY (…)'), subject)
FROM ours t
WHERE relkind = 'r' AND relpersistence = 'p' AND {{keyless}}
UNION ALL
SELECT 'blocker', subject, format('updates and deletes cannot be replicated: column %I of its replica identity is generated, and logical decoding leaves it out', a.attname),
       format('ALTER TABLE %s REPLICA IDENTITY FULL', subject)
FROM ours t JOIN pg_index i ON i.indrelid = t.oid AND CASE relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND a.attgenerated <> ''
WHERE relkind = 'r' AND relpersistence = 'p'
UNION ALL
SELECT 'blocker', gid, 'a prepared transaction blocks the fence and outlives it',
       format('COMMIT PREPARED %L; or: ROLLBACK PREPARED %L', gid, gid)
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'blocker', split_part(c.relname, '_', 2)::oid::regclass::text, 'pg_repack is rewriting it: a fence would wait for its locks',
       'wait for its end; where it died, DROP EXTENSION pg_repack CASCADE and make it again'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relname ~ '^log_' AND {{passing}}
UNION ALL
SELECT 'blocker', subject, 'its rows are not in the WAL (unlogged) and would not move',
       format('ALTER TABLE %s SET LOGGED; or in the policy: replication: {unlogged: carry}, or empty', subject)
FROM ours WHERE relkind = 'r' AND relpersistence = 'u' AND '{{unlogged}}' = 'refused'
UNION ALL
SELECT 'warning', subject, 'its rows are not in the WAL (unlogged): after a move it is empty, as after a crash',
       'replication: {unlogged: carry} in the policy'
FROM ours WHERE relkind = 'r' AND relpersistence = 'u' AND '{{unlogged}}' = 'emptied'
UNION ALL
SELECT 'blocker', 'unlogged tables', format('they hold %s, most of it %s, and at most %s are carried under a hold',
         pg_size_pretty(sum(bytes)), (array_agg(subject ORDER BY bytes DESC))[1], pg_size_pretty({{most}}::bigint)),
       format('ALTER TABLE %s SET LOGGED; or in the policy: replication: {unlogged: empty}', (array_agg(subject ORDER BY bytes DESC))[1])
FROM (SELECT subject, pg_table_size(oid) AS bytes FROM ours WHERE relkind = 'r' AND relpersistence = 'u') held
WHERE '{{unlogged}}' = 'carried' HAVING sum(bytes) > {{most}}
UNION ALL
SELECT 'blocker', 'large objects', format('role %I may not read %s large objects, and could not carry them', current_user, count(*)),
       format('GRANT SELECT ON pg_catalog.pg_largeobject TO %I', current_user)
FROM pg_largeobject_metadata HAVING count(*) > 0 AND NOT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')
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
SELECT 'warning', subject, 'a foreign table is not replicated: only its definition moves, and is followed', NULL
FROM ours WHERE relkind = 'f'
UNION ALL
SELECT 'warning', format('%s.%I', t.subject, a.attname),
       format('keeps numbers of this server (%s): after a move %s', coalesce('DEFAULT ' || drawn.value, pg_catalog.format_type(a.atttypid, a.atttypmod)),
         CASE WHEN large THEN 'those of large objects are the same, and others mean something else there' ELSE 'they mean something else there, or are lower than those before' END),
       CASE WHEN large THEN 'nothing where they are of large objects; else ' ELSE '' END || 'keep a name, a time or a value of a sequence instead, or see that nothing depends on it'
FROM ours t JOIN pg_class c USING (oid) JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type y ON y.oid = a.atttypid
LEFT JOIN LATERAL (
  SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS value FROM pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum
) drawn ON drawn.value ~ '\m(txid_current|pg_current_xact_id|pg_current_snapshot|pg_current_wal)'
CROSS JOIN LATERAL (SELECT CASE WHEN y.typtype = 'd' THEN y.typbasetype WHEN y.typcategory = 'A' THEN y.typelem ELSE y.oid END AS kind) k
CROSS JOIN LATERAL (SELECT k.kind = 'oid'::regtype AND drawn.value IS NULL AS large) l
WHERE t.relkind IN ('r', 'p') AND NOT c.relispartition
  AND (drawn.value IS NOT NULL OR k.kind
         = ANY ('{oid,xid,xid8,cid,tid,pg_lsn,pg_snapshot,txid_snapshot}'::regtype[]))
UNION ALL
-- Membership in a superuser is superuser: such an owner is to be replaced, not joined.
SELECT 'blocker', subject, format('role %I does not own it: the fence trigger cannot be put on and taken off', me.rolname),
       CASE WHEN o.rolsuper THEN format('ALTER TABLE %s OWNER TO …, a role that is not superuser; GRANT … TO %I', subject, me.rolname)
         ELSE format('GRANT %I TO %I', o.rolname, me.rolname) END
FROM me, ours JOIN pg_roles o ON o.oid = ours.relowner WHERE relkind IN ('r', 'p') AND NOT pg_has_role(relowner, 'USAGE')
UNION ALL
SELECT 'blocker', o.rolname::text, format('owns %s%s, and role %I is no member of it: the copy could not give it what it makes',
         min(owned.described), CASE WHEN count(*) > 1 THEN format(' and %s more', count(*) - 1) ELSE '' END, me.rolname),
       CASE WHEN o.rolsuper THEN format('ALTER %s OWNER TO …, a role that is not superuser', min(owned.described))
         ELSE format('GRANT %I TO %I', o.rolname, me.rolname) END
-- What belongs to superusers is told where both sides are known.
FROM me, owned JOIN pg_roles o ON o.oid = owned.owner
WHERE NOT pg_has_role(owned.owner, 'USAGE') AND (NOT o.rolsuper OR owned.described LIKE 'large object %')
GROUP BY o.rolname, o.rolsuper, me.rolname
UNION ALL
SELECT 'blocker', o.rolname::text, format('owns %s and may not create in schema %I: the copy could not give it that', min(held.described), n.nspname),
       format('GRANT CREATE ON SCHEMA %I TO %I', n.nspname, o.rolname)
FROM me, (
  SELECT relowner AS owner, relnamespace AS schema, subject AS described FROM ours JOIN pg_class USING (oid, relowner)
  UNION ALL
  SELECT proowner, pronamespace, p.oid::regprocedure::text FROM pg_proc p
  WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
  UNION ALL
  SELECT typowner, typnamespace, t.oid::regtype::text FROM pg_type t WHERE typtype IN ('d', 'e', 'r')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
) held JOIN pg_roles o ON o.oid = held.owner JOIN pg_namespace n ON n.oid = held.schema
WHERE NOT me.rolsuper AND NOT o.rolsuper AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
  AND NOT has_schema_privilege(o.oid, n.oid, 'CREATE')
GROUP BY o.rolname, n.nspname
UNION ALL
SELECT 'warning', format('user mapping for %I, server %I', usename, srvname),
       'its options (a password, say) may be kept from Godwit''s role, and then from the copy: the foreign tables cannot be read after a move',
       format('ALTER USER MAPPING FOR %I SERVER %I OPTIONS (ADD …) on the target, after the copy', usename, srvname)
FROM pg_user_mappings, me WHERE umuser <> 0 AND umoptions IS NULL AND NOT rolsuper
UNION ALL
SELECT 'blocker', subject, format('row security hides rows from role %I: the copy would lack them', rolname),
       format('ALTER ROLE %I BYPASSRLS', rolname)
FROM ours, me
WHERE relkind IN ('r', 'p') AND relrowsecurity AND NOT rolsuper AND NOT rolbypassrls
  AND (relforcerowsecurity OR NOT pg_has_role(relowner, 'USAGE'))
UNION ALL
-- Amazon's servers have a role in place of the attribute, which nobody there may give.
SELECT 'blocker', me.rolname::text, 'may not replicate',
       CASE WHEN g.oid IS NULL THEN format('ALTER ROLE %I REPLICATION', me.rolname) ELSE format('GRANT rds_replication TO %I', me.rolname) END
FROM me LEFT JOIN pg_roles g ON g.rolname = 'rds_replication'
WHERE NOT me.rolsuper AND NOT me.rolreplication AND NOT coalesce(pg_has_role(g.oid, 'MEMBER'), false)
UNION ALL
SELECT 'blocker', datname::text, format('role %I does not own the database: CONNECT cannot be taken away', me.rolname),
       CASE WHEN o.rolsuper THEN format('ALTER DATABASE %I OWNER TO …, a role that is not superuser; GRANT … TO %I', datname, me.rolname)
         ELSE format('GRANT %I TO %I', o.rolname, me.rolname) END
FROM me, here JOIN pg_roles o ON o.oid = datdba WHERE NOT pg_has_role(datdba, 'USAGE')
UNION ALL
SELECT 'blocker', rolname::text, 'may not end other sessions', format('GRANT pg_signal_backend TO %I', rolname)
FROM me WHERE NOT rolsuper AND NOT pg_has_role('pg_signal_backend', 'USAGE')
UNION ALL
SELECT 'warning', rolname::text, 'may not see who holds a lock', format('GRANT pg_read_all_stats TO %I', rolname)
FROM me WHERE NOT rolsuper AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
UNION ALL
SELECT 'warning', rolname::text, 'is superuser: Godwit needs less, and whoever has its password has the server',
       format('godwit grants --database %s --owner …; then ALTER ROLE %I NOSUPERUSER', datname, rolname)
FROM me, here WHERE rolsuper
UNION ALL
SELECT 'warning', datname::text, format('its encoding is %s', pg_encoding_to_char(encoding)),
       'the target database must have the same encoding'
FROM pg_database WHERE datname = current_database() AND pg_encoding_to_char(encoding) <> 'UTF8'
UNION ALL
SELECT 'warning', format('publication %I', pubname), 'it is of all tables, and so has Godwit''s own: a subscription that reads it at the server itself stops at them',
       'let its readers connect to the PostgreSQL front, which leaves them out; or publish tables, or schemas'
FROM pg_publication WHERE puballtables
