-- What the source's database makes use of, for offers.sql to look for on the target: one JSON array of
-- {kind, subject, value, …}. JSON reads columns of the catalogue that only newer servers have.
WITH RECURSIVE here AS (
  SELECT oid, datname FROM pg_database WHERE datname = current_database()
), ours AS (
  SELECT c.oid, c.relkind, c.reloptions, format('%I.%I', n.nspname, c.relname) AS subject
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't'
    AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), columns AS (
  SELECT a.*, t.relkind, format('%s.%I', t.subject, a.attname) AS subject
  FROM ours t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
), constraints AS (
  SELECT k.*, t.relkind, format('constraint %I of %s', k.conname, t.subject) AS subject, to_jsonb(k) AS new
  FROM ours t JOIN pg_constraint k ON k.conrelid = t.oid
), named AS (
  SELECT DISTINCT r.oid, r.rolname FROM pg_roles r JOIN pg_shdepend s ON s.refobjid = r.oid JOIN here ON s.dbid = here.oid
  WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a', 'r') AND r.rolname !~ '^pg_'
), roles(id) AS (
  -- And their members.
  SELECT oid FROM named
  UNION
  SELECT m.member FROM pg_auth_members m JOIN roles ON m.roleid = roles.id
), clients AS (
  SELECT r.* FROM pg_roles r WHERE r.oid IN (SELECT id FROM roles) AND r.rolcanlogin AND NOT r.rolsuper
    AND r.rolname <> current_user
), need(kind, subject, value, role) AS (
  SELECT 'collation', min(user_of), format('%I.%I', n.nspname, c.collname), NULL
  FROM (
    SELECT refobjid AS id, pg_describe_object(classid, objid, objsubid) AS user_of
    FROM pg_depend WHERE refclassid = 'pg_collation'::regclass AND objid >= 16384
    UNION ALL
    -- On those that are part of every server no dependency is recorded.
    SELECT attcollation, pg_describe_object('pg_class'::regclass, attrelid, attnum)
    FROM pg_attribute WHERE attrelid >= 16384 AND attcollation < 16384 AND attcollation NOT IN (0, 'pg_catalog."default"'::regcollation)
    UNION ALL
    SELECT typcollation, pg_describe_object('pg_type'::regclass, oid, 0) FROM pg_type
    WHERE oid >= 16384 AND typcollation < 16384 AND typcollation NOT IN (0, 'pg_catalog."default"'::regcollation)
  ) used JOIN pg_collation c ON c.oid = used.id JOIN pg_namespace n ON n.oid = c.collnamespace
  WHERE n.nspname = 'pg_catalog'
  GROUP BY n.nspname, c.collname
  UNION ALL
  SELECT 'provider', 'collation ' || c.oid::regcollation, c.collprovider::text, NULL
  FROM pg_collation c WHERE c.oid >= 16384 AND c.collprovider <> 'd'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_collation'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  UNION ALL
  SELECT 'compression', min(subject), 'lz4', NULL FROM columns WHERE attcompression = 'l' HAVING count(*) > 0
  UNION ALL
  SELECT 'xml', min(subject), NULL, NULL FROM columns JOIN pg_type y ON y.oid = atttypid
  WHERE attgenerated = '' AND relkind <> 'v' AND 'xml'::regtype IN (y.oid, y.typelem, y.typbasetype) HAVING count(*) > 0
  UNION ALL
  SELECT 'version', min(subject) || ': virtual generated column', '180000', NULL
  FROM columns WHERE attgenerated = 'v' HAVING count(*) > 0
  UNION ALL
  SELECT 'version', subject || ': WITHOUT OVERLAPS or PERIOD', '180000', NULL FROM constraints WHERE (new ->> 'conperiod')::boolean
  UNION ALL
  SELECT 'version', subject || ': NOT ENFORCED', '180000', NULL
  FROM constraints WHERE NOT (new ->> 'conenforced')::boolean AND conparentid = 0
  UNION ALL
  SELECT 'version', subject || ': NOT NULL that is not inherited or not validated', '180000', NULL
  FROM constraints WHERE contype = 'n' AND (connoinherit OR NOT convalidated)
  UNION ALL
  SELECT 'version', subject || ': exclusion constraint of a partitioned table', '170000', NULL
  FROM constraints WHERE contype = 'x' AND relkind = 'p'
  UNION ALL
  SELECT 'version', subject || ': ON DELETE SET of some columns', '150000', NULL
  FROM constraints WHERE new ->> 'confdelsetcols' IS NOT NULL AND conparentid = 0
  UNION ALL
  SELECT 'version', min(i.indexrelid::regclass::text) || ': NULLS NOT DISTINCT', '150000', NULL
  FROM ours t JOIN pg_index i ON i.indrelid = t.oid WHERE (to_jsonb(i) ->> 'indnullsnotdistinct')::boolean HAVING count(*) > 0
  UNION ALL
  SELECT 'version', subject || ': security_invoker', '150000', NULL
  FROM ours WHERE relkind = 'v' AND array_to_string(reloptions, ',') ~ 'security_invoker='
  UNION ALL
  SELECT 'role', NULL, rolname, NULL FROM named WHERE rolname <> current_user
  UNION ALL
  SELECT 'client', min(g.rolname), c.rolname, NULL
  FROM clients c JOIN pg_auth_members m ON m.member = c.oid JOIN pg_roles g ON g.oid = m.roleid
  WHERE c.oid NOT IN (SELECT oid FROM named) GROUP BY c.rolname
  UNION ALL
  SELECT 'member', NULL, g.rolname, c.rolname
  FROM clients c JOIN pg_auth_members m ON m.member = c.oid JOIN pg_roles g ON g.oid = m.roleid
  UNION ALL
  SELECT 'right', NULL, p, c.rolname
  FROM clients c, here, unnest('{CONNECT,CREATE,TEMPORARY}'::text[]) p WHERE has_database_privilege(c.oid, here.oid, p)
  UNION ALL
  SELECT 'bypass', NULL, NULL, rolname FROM clients WHERE rolbypassrls
  UNION ALL
  SELECT DISTINCT 'owner', NULL, r.rolname, NULL
  FROM pg_roles r JOIN pg_shdepend s ON s.refobjid = r.oid JOIN here ON s.dbid = here.oid
  WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND r.rolname <> current_user AND NOT r.rolsuper
  UNION ALL
  SELECT DISTINCT 'wrapper', s.srvname, w.fdwname, r.rolname FROM pg_foreign_server s JOIN pg_roles r ON r.oid = s.srvowner JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
  WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_foreign_server'::regclass AND d.objid = s.oid AND d.deptype = 'e')
  UNION ALL
  -- Only a superuser may grant these, and so a copy leaves them.
  SELECT 'server right', o.name, x.privilege_type, r.rolname
  FROM (
    SELECT format('TABLE pg_catalog.%I', relname) AS name, relacl AS acl FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
    UNION ALL
    SELECT format('FUNCTION pg_catalog.%I(%s)', proname, oidvectortypes(proargtypes)), proacl
    FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
  ) o, aclexplode(o.acl) x JOIN pg_roles r ON r.oid = x.grantee
  WHERE r.oid IN (SELECT id FROM roles) AND r.rolname <> current_user AND x.privilege_type <> 'MAINTAIN'
  UNION ALL
  -- So are these, where Godwit's role may not act for the owner. What an extension itself gives to all comes with it.
  SELECT 'owner''s right', o.name, x.privilege_type, coalesce(r.rolname, 'public')
  FROM (
{{objects}}
  ) o LEFT JOIN pg_init_privs i ON i.classoid = o.of AND i.objoid = o.oid AND i.objsubid = 0,
  aclexplode(o.acl) x LEFT JOIN pg_roles r ON r.oid = x.grantee
  WHERE NOT pg_has_role(o.owner, 'USAGE') AND x.grantee <> o.owner AND x.privilege_type <> 'MAINTAIN'
    AND (x.grantee = 0 OR x.grantee IN (SELECT id FROM roles) AND NOT r.rolsuper AND r.rolname <> current_user)
    AND NOT EXISTS (SELECT FROM aclexplode(i.initprivs) b WHERE b.grantee = x.grantee AND b.privilege_type = x.privilege_type)
  UNION ALL
  SELECT 'default privileges', name, sql, role FROM ({{defaults}}) d WHERE NOT mine
  UNION ALL
  -- What a session begins with: the server's setting or the database's own. Godwit's role has a search_path of its own.
  SELECT 'default', name, reset_val, NULL FROM pg_settings
  WHERE name = ANY ('{array_nulls,bytea_output,DateStyle,default_text_search_config,default_transaction_deferrable,default_transaction_isolation,default_transaction_read_only,extra_float_digits,idle_in_transaction_session_timeout,IntervalStyle,lc_monetary,lc_numeric,lc_time,lock_timeout,row_security,standard_conforming_strings,statement_timeout,TimeZone,transform_null_equals,xmlbinary,xmloption}')
  UNION ALL
  SELECT 'room', name, reset_val, NULL FROM pg_settings
  WHERE name = ANY ('{max_connections,max_locks_per_transaction,max_prepared_transactions}')
  UNION ALL
  -- Seen by members of pg_read_all_settings only.
  SELECT 'library', name, library, NULL FROM pg_settings, unnest(string_to_array(replace(reset_val, ' ', ''), ',')) library
  WHERE name = ANY ('{shared_preload_libraries,session_preload_libraries,local_preload_libraries}') AND library <> ''
  UNION ALL
  -- Which version Godwit's own have matters to nobody.
  SELECT 'extension', NULL, extversion, extname FROM pg_extension
  WHERE extversion ~ '^[0-9]+(\.[0-9]+)*$' AND extname <> ALL ('{pg_prewarm,pg_buffercache}')
  UNION ALL
  SELECT 'locks', NULL, ({{relations}})::text, NULL
  UNION ALL
  SELECT 'slot', slot_name, plugin, NULL FROM pg_replication_slots
  WHERE slot_type = 'logical' AND NOT temporary AND database = (SELECT datname FROM here) AND slot_name !~ '^godwit_'
    AND slot_name <> ALL ({{carried}})
  UNION ALL
  SELECT 'event trigger', name, sql, function FROM ({{event_triggers}}) e
  UNION ALL
  -- What a server does for all its databases.
  SELECT 'switch', name, reset_val, NULL FROM pg_settings
  WHERE name = ANY ('{archive_mode,autovacuum,fsync,full_page_writes,ssl,track_counts}') AND reset_val <> 'off'
  UNION ALL
  -- Seen by members of pg_read_all_stats only.
  SELECT 'standby', coalesce(nullif(r.application_name, ''), r.usename), NULL, NULL FROM pg_stat_replication r
  WHERE r.state IN ('streaming', 'catchup')
    AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
  UNION ALL
  -- Others are made like any part of the schema.
  SELECT 'publication', name, sql, NULL FROM ({{publications}}) p (kind, name, part, definition, sql, undo)
  WHERE kind = 'publication' AND (definition = 'for all tables' OR sql LIKE '%TABLES IN SCHEMA %')
  UNION ALL
  SELECT CASE WHEN s.setdatabase = 0 THEN 'role setting' ELSE 'database setting' END, split_part(entry, '=', 1),
         substr(entry, strpos(entry, '=') + 1), r.rolname
  FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) entry LEFT JOIN pg_roles r ON r.oid = s.setrole
  WHERE (s.setdatabase = (SELECT oid FROM here) AND (s.setrole = 0 OR r.rolname <> current_user)
      OR s.setdatabase = 0 AND s.setrole IN (SELECT oid FROM clients))
    -- Godwit's own is not the service's.
    AND NOT (s.setrole = 0 AND entry LIKE 'synchronous\_commit=%')
)
SELECT coalesce(jsonb_agg(to_jsonb(need)), '[]') FROM need
