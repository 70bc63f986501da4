-- What a database's schema consists of, one row for each thing that both sides must have alike: kind, table or type, name,
-- definition (NULL: it was dropped since the reading began, and does not count), and the SQL that makes it elsewhere (NULL: pg_dump knows); and what tables, types and their columns have as numbers ('#'), tables as files ('@') and values of enums as places and numbers ('='). search_path is empty: every name is qualified.
WITH RECURSIVE ours AS (
  SELECT c.oid, c.relkind, c.relreplident, c.relpersistence, c.relpartbound, c.relfilenode, c.reloftype, format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND {{own}}
), parts AS (
  SELECT t.oid AS root, h.inhrelid AS oid FROM ours t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.oid WHERE t.relkind = 'p'
  UNION ALL
  SELECT p.root, h.inhrelid FROM parts p JOIN pg_catalog.pg_inherits h ON h.inhparent = p.oid
), leaves AS (
  SELECT p.root, p.oid, count(*) OVER (PARTITION BY p.root) AS count FROM parts p JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind <> 'p'
), given AS (
  -- What rows of a partitioned table have that are older than a column, only its parts say.
  SELECT l.root, a.attname, min(a.attmissingval::text) AS missing, count(DISTINCT a.attmissingval::text) = 1 AND count(*) = min(l.count) AS everywhere
  FROM leaves l JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.atthasmissing AND NOT a.attisdropped GROUP BY l.root, a.attname
), columns AS (
  SELECT t.oid, t.name AS owner, a.attname::text AS name, a.attnum,
         {{kind}} AS kind,
         -- From 17 on a partition has the identity columns of what it is a part of.
         {{filled}} AS filled, a.attgenerated::text AS generated,
         CASE WHEN t.relpartbound IS NULL THEN a.attidentity::text ELSE '' END AS identity,
         pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS value, a.attinhcount > 0 AS inherited,
         CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] ELSE (g.missing::text[])[1] END AS missing,
         a.atthasmissing OR coalesce(g.everywhere, false) AS has_missing, g.root IS NOT NULL AS somewhere
  FROM ours t
  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
  LEFT JOIN (pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace) ON co.oid = a.attcollation
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN given g ON g.root = t.oid AND g.attname = a.attname
), defined AS (
  SELECT *, kind
    || CASE WHEN generated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', value, CASE generated WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END)
            WHEN identity <> '' THEN format(' GENERATED %s AS IDENTITY', CASE identity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END)
            WHEN value IS NOT NULL THEN format(' DEFAULT %s', value) ELSE '' END
    || CASE WHEN filled THEN ' NOT NULL' ELSE '' END AS definition
  FROM columns
), labels AS (
  SELECT format('%I.%I', n.nspname, y.typname) AS owner, e.enumlabel::text AS label, e.oid AS number,
         row_number() OVER w AS place, lag(e.enumlabel::text) OVER w AS before
  FROM pg_catalog.pg_enum e JOIN pg_catalog.pg_type y ON y.oid = e.enumtypid JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'godwit')
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid AND d.deptype = 'e')
  WINDOW w AS (PARTITION BY y.oid ORDER BY e.enumsortorder)
)
SELECT 'table', name, '', CASE relkind WHEN 'p' THEN 'partitioned by ' || pg_catalog.pg_get_partkeydef(oid) ELSE 'plain' END
       || CASE relpersistence WHEN 'u' THEN ' unlogged' ELSE '' END, NULL::text
FROM ours
UNION ALL
-- Of a composite type, whose attributes are its columns.
SELECT 'row type', t.name, '', format('%I.%I', n.nspname, y.typname), format('ALTER TABLE %s OF %I.%I', t.name, n.nspname, y.typname)
FROM ours t JOIN pg_catalog.pg_type y ON y.oid = t.reloftype JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace
UNION ALL
SELECT '#', name, '', oid || ' 0', NULL FROM ours
UNION ALL
SELECT '#', owner, name, oid || ' ' || attnum, NULL FROM columns
UNION ALL
SELECT '@', name, '', relfilenode::text, NULL FROM ours WHERE relfilenode <> 0
UNION ALL
SELECT CASE WHEN t.relpartbound IS NULL THEN 'child of' ELSE 'partition of' END, t.name, p.name,
       CASE WHEN t.relpartbound IS NULL THEN 'it' ELSE pg_catalog.pg_get_expr(t.relpartbound, t.oid) END,
       CASE WHEN t.relpartbound IS NULL THEN format('ALTER TABLE %s INHERIT %s', t.name, p.name)
            ELSE format('ALTER TABLE %s ATTACH PARTITION %s %s', p.name, t.name, pg_catalog.pg_get_expr(t.relpartbound, t.oid)) END
FROM ours t JOIN pg_catalog.pg_inherits h ON h.inhrelid = t.oid JOIN ours p ON p.oid = h.inhparent
UNION ALL
SELECT 'column', owner, name, definition,
       -- Rows from before it was added must get what they have here, those that the stream has yet to bring as well: what it is given by default
       -- since then follows when these are there. Where that cannot be told, there is no SQL.
       CASE WHEN inherited OR identity <> '' THEN NULL
            WHEN generated <> '' THEN format('ALTER TABLE %s ADD COLUMN %I %s', owner, name, definition)
            WHEN has_missing THEN
              format('ALTER TABLE %s ADD COLUMN %I %s DEFAULT %L%s', owner, name, kind, missing, CASE WHEN filled THEN ' NOT NULL' ELSE '' END)
            -- A default that it has was given later, and is not what older rows have: `rewritten.rs` asks them in case of doubt.
            WHEN NOT somewhere THEN format('ALTER TABLE %s ADD COLUMN %I %s', owner, name, kind) END
FROM defined
UNION ALL
SELECT 'published', t.name, '', CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
         WHERE r.prrelid = t.oid AND p.pubname ~ '^godwit_') THEN 'yes' WHEN {{keyless}} THEN 'keyless' ELSE 'no' END,
       format('ALTER TABLE %s REPLICA IDENTITY FULL', t.name)
FROM ours t WHERE t.relkind = 'r' AND t.relpersistence = 'p'
UNION ALL
-- NOT NULL is a constraint of its own since 18; here it belongs to the column.
SELECT 'constraint', t.name, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid),
       CASE WHEN k.conislocal THEN format('ALTER TABLE %s ADD CONSTRAINT %I %s', t.name, k.conname, pg_catalog.pg_get_constraintdef(k.oid)) END
FROM ours t JOIN pg_catalog.pg_constraint k ON k.conrelid = t.oid
WHERE k.contype IN ('p', 'u', 'f', 'c', 'x') AND (k.contype <> 'f' OR k.conparentid = 0)
UNION ALL
-- One that the rows that were there need not satisfy. What a part has of it is its parent's.
SELECT 'unvalidated not null', t.name, a.attname::text, 'present',
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', t.name, k.conname, pg_catalog.pg_get_constraintdef(k.oid))
FROM ours t JOIN pg_catalog.pg_constraint k ON k.conrelid = t.oid AND k.contype = 'n' AND NOT k.convalidated AND k.coninhcount = 0
JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.conkey[1]
UNION ALL
SELECT 'index', t.name, x.relname::text, regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX ("([^"]|"")+"|\S+) ', 'CREATE \1INDEX '),
       CASE WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid)
            -- Of a partitioned table it says ONLY, which leaves the index invalid.
            THEN regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), '^(CREATE (UNIQUE )?INDEX ("([^"]|"")+"|\S+) ON )ONLY ', '\1') END
FROM ours t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
WHERE i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'replica identity', t.name, '', CASE t.relreplident WHEN 'd' THEN 'default' WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing'
         ELSE format('index %I', (SELECT x.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                                  WHERE i.indrelid = t.oid AND i.indisreplident)) END,
       format('ALTER TABLE %s REPLICA IDENTITY %s', t.name, CASE t.relreplident WHEN 'd' THEN 'DEFAULT' WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING'
         ELSE format('USING INDEX %I', (SELECT x.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                                        WHERE i.indrelid = t.oid AND i.indisreplident)) END)
FROM ours t WHERE t.relkind = 'r'
UNION ALL
SELECT '=', owner, label, place || ' ' || number, NULL FROM labels
UNION ALL
SELECT 'enum value', owner, label, 'present',
       format('ALTER TYPE %s ADD VALUE IF NOT EXISTS %L', owner, label) || coalesce(' AFTER ' || quote_literal(before), '')
FROM labels
