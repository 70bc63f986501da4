-- Servers of others and the tables that are there. As fingerprint.sql. Which server that is may be another in each zone: of options only what is
-- changed later counts (worded.rs). Those of user mappings are hidden from whom they are not for.
WITH servers AS (
  SELECT s.oid, format('%I', s.srvname) AS name, format('%I', w.fdwname) AS wrapper, s.srvtype, s.srvversion, o.options
  FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw,
  LATERAL (SELECT string_agg(format('%I %L', option_name, option_value), ', ' ORDER BY option_name) AS options
           FROM pg_catalog.pg_options_to_table(s.srvoptions)) o
  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_foreign_server'::regclass AND d.objid = s.oid AND d.deptype = 'e')
), ours AS (
  SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relowner, c.relpartbound, format('%I', s.srvname) AS server, o.options
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver,
  LATERAL (SELECT string_agg(format('%I %L', option_name, option_value), ', ' ORDER BY option_name) AS options
           FROM pg_catalog.pg_options_to_table(f.ftoptions)) o
  WHERE {{own}}
), columns AS (
  SELECT t.oid, t.name AS owner, a.attname::text AS name, a.attnum, a.attinhcount > 0 AS inherited, {{kind}}
           || CASE WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', pg_catalog.pg_get_expr(d.adbin, d.adrelid),
                     CASE a.attgenerated WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END)
                   ELSE coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') END
           || CASE WHEN {{filled}} THEN ' NOT NULL' ELSE '' END AS definition, o.options,
         format('; ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (', t.name, a.attname) || o.options || ')' AS more
  FROM ours t
  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
  LEFT JOIN (pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace) ON co.oid = a.attcollation
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum,
  LATERAL (SELECT string_agg(format('%I %L', option_name, option_value), ', ' ORDER BY option_name) AS options
           FROM pg_catalog.pg_options_to_table(a.attfdwoptions)) o
), checks AS (
  SELECT t.oid, t.name AS owner, k.conname::text AS name, k.conislocal, pg_catalog.pg_get_constraintdef(k.oid) AS definition
  FROM ours t JOIN pg_catalog.pg_constraint k ON k.conrelid = t.oid AND k.contype = 'c'
), parts AS (
  SELECT oid, attnum::int AS place, format('%I %s', name, definition) AS part, more FROM columns
  UNION ALL
  SELECT oid, 10000, format('CONSTRAINT %I %s', name, definition), NULL FROM checks
), listed AS (
  SELECT oid, string_agg(part, ', ' ORDER BY place, part) AS list, string_agg(more, '' ORDER BY place) AS more FROM parts GROUP BY oid
), bound AS (
  SELECT t.name, format('%I.%I', n.nspname, p.relname) AS parent, pg_catalog.pg_get_expr(t.relpartbound, t.oid) AS bound
  FROM ours t JOIN pg_catalog.pg_inherits h ON h.inhrelid = t.oid JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
  JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
)
SELECT 'server', name, '', d.definition, format('CREATE SERVER %s%s', d.definition, coalesce(' OPTIONS (' || options || ')', ''))
FROM servers, LATERAL (
  SELECT concat_ws(' ', name, 'TYPE ' || quote_literal(srvtype), 'VERSION ' || quote_literal(srvversion), 'FOREIGN DATA WRAPPER ' || wrapper) AS definition
) d
UNION ALL
SELECT 'foreign options', name, '', coalesce(options, 'none'), NULL FROM servers
UNION ALL
SELECT 'user mapping', s.name, format('for %I', m.usename), 'present', NULL
FROM servers s JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid LEFT JOIN pg_catalog.pg_roles r ON r.oid = m.umuser
WHERE NOT coalesce(r.rolsuper, false) AND m.usename <> current_user
UNION ALL
SELECT 'foreign table', name, '', 'of server ' || server,
       concat(format('CREATE FOREIGN TABLE %s (%s) SERVER %s', name, list, server), ' OPTIONS (' || options || ')', more)
FROM ours LEFT JOIN listed USING (oid)
UNION ALL
SELECT 'foreign options', t.name, '', coalesce(nullif(concat_ws('; ', t.options,
         (SELECT string_agg(format('%I: %s', c.name, c.options), '; ' ORDER BY c.name) FROM columns c WHERE c.oid = t.oid AND c.options IS NOT NULL)), ''), 'none'), NULL
FROM ours t
UNION ALL
SELECT 'column', owner, name, definition,
       CASE WHEN NOT inherited THEN concat(format('ALTER TABLE %s ADD COLUMN %I %s', owner, name, definition), more) END
FROM columns
UNION ALL
SELECT 'constraint', owner, name, definition,
       CASE WHEN conislocal THEN format('ALTER TABLE %s ADD CONSTRAINT %I %s', owner, name, definition) END
FROM checks
UNION ALL
SELECT CASE WHEN bound IS NULL THEN 'child of' ELSE 'partition of' END, name, parent, coalesce(bound, 'it'),
       CASE WHEN bound IS NULL THEN format('ALTER TABLE %s INHERIT %s', name, parent)
            ELSE format('ALTER TABLE %s ATTACH PARTITION %s %s', parent, name, bound) END
FROM bound
UNION ALL
SELECT 'owner', name, '', pg_catalog.pg_get_userbyid(relowner)::text,
       format('ALTER FOREIGN TABLE %s OWNER TO %I', name, pg_catalog.pg_get_userbyid(relowner))
FROM ours
