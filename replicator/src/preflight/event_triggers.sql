SELECT e.evtname::text AS name, format('%I.%I()', n.nspname, p.proname) AS function,
       format('CREATE EVENT TRIGGER %I ON %s%s EXECUTE FUNCTION %I.%I()%s', e.evtname, e.evtevent,
         (SELECT ' WHEN TAG IN (' || string_agg(quote_literal(tag), ', ' ORDER BY tag) || ')' FROM unnest(e.evttags) tag), n.nspname, p.proname,
         CASE e.evtenabled WHEN 'O' THEN '' ELSE format('; ALTER EVENT TRIGGER %I %s', e.evtname,
           CASE e.evtenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END) END) AS sql
FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
