-- Findings about a database as the target of a stream: severity, subject, problem, remedy.
SELECT 'blocker', current_user::text, format('may not call %s: applied rows need an origin', f.name),
       format('GRANT EXECUTE ON FUNCTION %s TO %I', f.id::regprocedure, current_user)
FROM (SELECT name, to_regprocedure(name) AS id FROM unnest('{{functions}}'::text[]) name) f
WHERE f.id IS NOT NULL AND NOT has_function_privilege(f.id, 'EXECUTE')
UNION ALL
SELECT 'blocker', 'user tables', format('the database holds %s tables and no record of a copy: %s%s', count(*),
         array_to_string((array_agg(format('%I.%I', n.nspname, c.relname) ORDER BY n.nspname, c.relname))[:5], ', '),
         CASE WHEN count(*) > 5 THEN ', …' ELSE '' END),
       'use an empty database, or drop these tables; godwit reseed goes on where it broke off while it emptied a shadow'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    AND NOT '{{copied}}'::boolean
HAVING count(*) > 0
UNION ALL
SELECT 'blocker', 'large objects', format('the database holds %s large objects and no record of a copy: they would be dropped', count(*)),
       'use an empty database, or drop them: SELECT lo_unlink(oid) FROM pg_largeobject_metadata'
FROM pg_largeobject_metadata WHERE NOT '{{copied}}'::boolean HAVING count(*) > 0
