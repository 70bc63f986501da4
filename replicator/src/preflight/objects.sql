    -- What roles may be allowed something on, named as GRANT names it.
    SELECT 'pg_namespace'::regclass AS of, n.oid, format('SCHEMA %I', nspname) AS name, nspowner AS owner, nspacl AS acl FROM pg_namespace n
    WHERE nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND nspname !~ '^pg_(toast|temp_|toast_temp_)'
    UNION ALL
    SELECT 'pg_class', c.oid, format('%s %I.%I', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, nspname, relname), relowner, relacl
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname <> ALL ('{pg_catalog,information_schema,godwit}')
    UNION ALL
    SELECT 'pg_proc', p.oid, format('%s %I.%I(%s)', CASE prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, nspname, proname, oidvectortypes(proargtypes)),
           proowner, proacl
    FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname <> ALL ('{pg_catalog,information_schema,godwit}')
    UNION ALL
    SELECT 'pg_foreign_server', oid, format('FOREIGN SERVER %I', srvname), srvowner, srvacl FROM pg_foreign_server
