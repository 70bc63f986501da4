-- Which object each thing is that servers word otherwise ('%': kind and object), and in which state where that can be changed: one that was not made
-- anew says something else only by what it speaks of. As fingerprint.sql.
WITH ours AS (
  SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {{own}}
)
SELECT '%', t.name, k.conname::text, 'constraint ' || k.oid FROM ours t JOIN pg_catalog.pg_constraint k ON k.conrelid = t.oid
UNION ALL
SELECT '%', t.name, x.relname::text, 'index ' || x.oid
FROM ours t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
UNION ALL
SELECT '%', t.name, s.stxname::text, 'statistics ' || s.oid FROM ours t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.oid
UNION ALL
SELECT '%', t.name, p.polname::text, format('policy %s/%s', p.oid, p.xmin) FROM ours t JOIN pg_catalog.pg_policy p ON p.polrelid = t.oid
UNION ALL
SELECT '%', t.name, g.tgname::text, format('trigger %s/%s', g.oid, g.xmin)
FROM ours t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.oid WHERE NOT g.tgisinternal
UNION ALL
SELECT '%', t.name, CASE WHEN r.rulename = '_RETURN' THEN '' ELSE r.rulename::text END,
       format('%s %s/%s', CASE WHEN r.rulename = '_RETURN' THEN 'query' ELSE 'rule' END, r.oid, r.xmin)
FROM ours t JOIN pg_catalog.pg_rewrite r ON r.ev_class = t.oid
UNION ALL
SELECT '%', format('%I.%I', n.nspname, y.typname), k.conname::text, 'domain constraint ' || k.oid
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_type y ON y.oid = k.contypid JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace
UNION ALL
SELECT '%', p.oid::pg_catalog.regprocedure::text, '', format('body %s/%s', p.oid, p.xmin)
FROM pg_catalog.pg_proc p WHERE p.oid >= 16384 AND p.prosqlbody IS NOT NULL
