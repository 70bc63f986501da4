  -- What a dump makes and gives to its owner, apart from tables; and how it is made, where that is a line.
  SELECT c.relowner AS owner, format('%s %I.%I', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
           WHEN 'S' THEN 'sequence' ELSE 'foreign table' END, n.nspname, c.relname) AS described, NULL AS made
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('v', 'm', 'S', 'f') AND c.relpersistence <> 't'
    AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)' AND NOT {{passing}}
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  UNION ALL
  SELECT p.proowner, format('%s %s', CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
           p.oid::regprocedure), NULL
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
  UNION ALL
  SELECT t.typowner, format('type %s', t.oid::regtype), NULL FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND t.typtype IN ('d', 'e', 'r')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
  UNION ALL
  -- Schema public is only spoken of in a dump where its owner is not the usual one.
  SELECT n.nspowner, format('schema %I', n.nspname),
         CASE n.nspname WHEN 'public' THEN format('ALTER SCHEMA public OWNER TO %I', pg_get_userbyid(n.nspowner)) ELSE format('CREATE SCHEMA %I', n.nspname) END
  FROM pg_namespace n
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND NOT (n.nspname = 'public' AND n.nspowner = coalesce(to_regrole('pg_database_owner')::oid, 10))
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
  UNION ALL
  SELECT o.owner, replace(replace(regexp_replace(pg_describe_object(o.of, o.oid, 0), '^statistics object', 'statistics'),
           'foreign-data wrapper', 'foreign data wrapper'), ' for access method ', ' using '), o.made FROM (
    SELECT 'pg_foreign_server'::regclass AS of, oid, srvowner AS owner, NULL AS made FROM pg_foreign_server
    UNION ALL SELECT 'pg_foreign_data_wrapper', oid, fdwowner, format('CREATE FOREIGN DATA WRAPPER %I%s%s', fdwname,
      ' HANDLER ' || nullif(fdwhandler, 0)::regproc, ' VALIDATOR ' || nullif(fdwvalidator, 0)::regproc) FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_opfamily', oid, opfowner, NULL FROM pg_opfamily
    UNION ALL SELECT 'pg_opclass', oid, opcowner, NULL FROM pg_opclass
    UNION ALL SELECT 'pg_collation', oid, collowner, NULL FROM pg_collation
    UNION ALL SELECT 'pg_conversion', oid, conowner, NULL FROM pg_conversion
    UNION ALL SELECT 'pg_operator', oid, oprowner, NULL FROM pg_operator
    UNION ALL SELECT 'pg_ts_config', oid, cfgowner, NULL FROM pg_ts_config
    UNION ALL SELECT 'pg_ts_dict', oid, dictowner, NULL FROM pg_ts_dict
    UNION ALL SELECT 'pg_statistic_ext', oid, stxowner, NULL FROM pg_statistic_ext
    UNION ALL SELECT 'pg_type', t.oid, typowner, NULL FROM pg_type t JOIN pg_class c ON c.oid = typrelid WHERE c.relkind = 'c'
  ) o WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.of AND d.objid = o.oid AND d.deptype = 'e')
