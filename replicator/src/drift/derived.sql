-- Whether nothing hangs on this view, function or table ($1) but its own parts, views, rules, triggers, policies, defaults, constraints, indexes and functions of SQL, at
-- whatever remove: no column that is computed by it or of its type, and nothing that is not compared (operators, casts, aggregates, …).
WITH RECURSIVE hangs(class, id, how, apart) AS (
  -- Only the name of a function ends so.
  SELECT CASE WHEN $1::text LIKE '%)' THEN 'pg_catalog.pg_proc'::regclass ELSE 'pg_catalog.pg_class'::regclass END::oid,
         CASE WHEN $1 LIKE '%)' THEN pg_catalog.to_regprocedure($1)::oid ELSE pg_catalog.to_regclass($1)::oid END, 'n'::"char", false
  UNION
  SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END, coalesce(r.ev_class, d.objid), d.deptype,
         -- What goes with it in any case is a part of it.
         h.apart OR d.deptype = 'n' AND f.adrelid IS DISTINCT FROM h.id
  FROM hangs h JOIN pg_catalog.pg_depend d ON d.refclassid = h.class AND d.refobjid = h.id AND d.deptype IN ('n', 'a', 'i')
  LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
  LEFT JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
)
SELECT coalesce(bool_and(CASE WHEN NOT apart THEN id IS NOT NULL ELSE CASE class
  WHEN 'pg_catalog.pg_class'::regclass THEN (SELECT c.relkind IN ('v', 'm', 'i', 'I') FROM pg_catalog.pg_class c WHERE c.oid = id)
  WHEN 'pg_catalog.pg_proc'::regclass THEN (SELECT p.prokind IN ('f', 'p') FROM pg_catalog.pg_proc p WHERE p.oid = id)
  -- Of a view's rows, and arrays of them.
  WHEN 'pg_catalog.pg_type'::regclass THEN how = 'i'
  WHEN 'pg_catalog.pg_attrdef'::regclass THEN (SELECT a.attgenerated = '' FROM pg_catalog.pg_attrdef f
    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum WHERE f.oid = id)
  ELSE class IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_policy'::regclass,
                 'pg_catalog.pg_constraint'::regclass) END END), false)
FROM hangs
