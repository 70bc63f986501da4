-- What stands in the way of another type of a column of this table ($1), which $2 begins with, in quotes: for each thing the SQL that drops it, and whether it is
-- made again by whoever compares: nothing hangs on it but what `derived.sql` has, at whatever remove. So of what inherits the column.
WITH RECURSIVE tables AS (
  SELECT pg_catalog.to_regclass($1::text)::oid AS oid
  UNION
  SELECT h.inhrelid FROM tables t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.oid
), columns AS (
  SELECT a.attrelid, a.attnum FROM tables t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE starts_with($2::text, '"' || replace(a.attname, '"', '""') || '" ')
), uses AS (
  SELECT DISTINCT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END AS class, coalesce(r.ev_class, d.objid) AS id
  FROM columns c JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
  LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
), hangs(first_class, first, class, id, how) AS (
  SELECT class, id, class, id, 'n'::"char" FROM uses
  UNION
  SELECT h.first_class, h.first, CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END, coalesce(r.ev_class, d.objid), d.deptype
  FROM hangs h JOIN pg_catalog.pg_depend d ON d.refclassid = h.class AND d.refobjid = h.id AND d.deptype IN ('n', 'a', 'i')
  LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
  WHERE h.class <> 'pg_catalog.pg_attrdef'::regclass
), compared AS (
  SELECT first, bool_and(CASE class
    WHEN 'pg_catalog.pg_class'::regclass THEN (SELECT c.relkind IN ('v', 'm', 'i', 'I') FROM pg_catalog.pg_class c WHERE c.oid = id)
    WHEN 'pg_catalog.pg_proc'::regclass THEN (SELECT p.prokind IN ('f', 'p') FROM pg_catalog.pg_proc p WHERE p.oid = id)
    WHEN 'pg_catalog.pg_type'::regclass THEN how = 'i'
    WHEN 'pg_catalog.pg_attrdef'::regclass THEN first_class = class OR (SELECT a.attgenerated = '' FROM pg_catalog.pg_attrdef f
      JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum WHERE f.oid = id)
    ELSE class IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_policy'::regclass,
                   'pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_publication_rel'::regclass) END) AS yes
  FROM hangs GROUP BY first
)
SELECT sql, coalesce(yes, false) FROM (
  SELECT 1 AS place, c.oid, format('DROP %s IF EXISTS %s CASCADE', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, format('%I.%I', n.nspname, c.relname)) AS sql
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('v', 'm') AND c.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_class'::regclass)
  UNION ALL
  SELECT 1, p.oid, format('DROP ROUTINE IF EXISTS %I.%I(%s) CASCADE', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE p.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_proc'::regclass)
  UNION ALL
  SELECT 2, r.oid, format('DROP RULE IF EXISTS %I ON %I.%I', r.rulename, n.nspname, c.relname)
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE r.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_rewrite'::regclass)
  UNION ALL
  -- What a partition has of it goes with its parent's.
  SELECT 2, g.oid, format('DROP TRIGGER IF EXISTS %I ON %I.%I', g.tgname, n.nspname, c.relname)
  FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND g.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_trigger'::regclass)
  UNION ALL
  SELECT 2, p.oid, format('DROP POLICY IF EXISTS %I ON %I.%I', p.polname, n.nspname, c.relname)
  FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE p.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_policy'::regclass)
  UNION ALL
  -- One that lists the column, or has it in a row filter.
  SELECT 2, r.oid, format('ALTER PUBLICATION %I DROP TABLE ONLY %I.%I', p.pubname, n.nspname, c.relname)
  FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE r.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_publication_rel'::regclass)
  UNION ALL
  SELECT 3, f.oid, format('ALTER TABLE %I.%I DROP COLUMN IF EXISTS %I', n.nspname, c.relname, a.attname)
  FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
  JOIN pg_catalog.pg_class c ON c.oid = f.adrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE a.attgenerated <> '' AND a.attinhcount = 0 AND f.oid IN (SELECT id FROM uses WHERE class = 'pg_catalog.pg_attrdef'::regclass)
    AND NOT EXISTS (SELECT FROM columns o WHERE o.attrelid = f.adrelid AND o.attnum = f.adnum)
) found(place, id, sql) LEFT JOIN compared ON first = found.id ORDER BY place, sql
