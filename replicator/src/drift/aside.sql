-- How tables and columns are stored and planned with, and what is said of things: no query of the service's is answered otherwise without.
-- As fingerprint.sql, and the SQL that takes each away.
WITH ours AS (
  SELECT c.oid, c.relkind, c.reloptions, c.reltoastrelid, format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND {{own}}
), options AS (
  SELECT o.name, o.toast || p.option_name AS option, p.option_value AS value
  FROM (
    SELECT name, '' AS toast, reloptions FROM ours WHERE relkind = 'r'
    UNION ALL
    SELECT o.name, 'toast.', t.reloptions FROM ours o JOIN pg_catalog.pg_class t ON t.oid = o.reltoastrelid
  ) o, pg_catalog.pg_options_to_table(o.reloptions) p
), columns AS (
  SELECT t.name AS owner, a.attname::text AS name, format('ALTER TABLE %s ALTER COLUMN %I ', t.name, a.attname) AS alter,
         a.attoptions, nullif(a.attstattarget, -1) AS target, CASE a.attcompression WHEN 'l' THEN 'lz4' WHEN 'p' THEN 'pglz' END AS compression,
         CASE a.attstorage WHEN 'p' THEN 'plain' WHEN 'e' THEN 'external' WHEN 'm' THEN 'main' ELSE 'extended' END AS stored,
         CASE y.typstorage WHEN 'p' THEN 'plain' WHEN 'e' THEN 'external' WHEN 'm' THEN 'main' ELSE 'extended' END AS usual
  FROM ours t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
  WHERE a.attoptions IS NOT NULL OR nullif(a.attstattarget, -1) IS NOT NULL OR a.attcompression <> '' OR a.attstorage <> y.typstorage
), said AS (
  -- Not what every database has from its beginning.
  SELECT * FROM pg_catalog.pg_description d
  WHERE d.objoid >= 16384
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype = 'e')
), described AS (
  SELECT r.name || coalesce('.' || pg_catalog.quote_ident(a.attname), '') AS identity, d.description,
         format('%s %s', CASE WHEN a.attname IS NOT NULL THEN 'COLUMN' ELSE CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
             WHEN 'S' THEN 'SEQUENCE' WHEN 'i' THEN 'INDEX' WHEN 'I' THEN 'INDEX' WHEN 'c' THEN 'TYPE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END END,
           r.name || coalesce('.' || pg_catalog.quote_ident(a.attname), '')) AS what
  FROM said d JOIN pg_catalog.pg_class c ON c.oid = d.objoid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid <> 0,
  LATERAL (SELECT format('%I.%I', n.nspname, c.relname) AS name) r
  WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND {{own}}
  UNION ALL
  SELECT i.identity, d.description,
         CASE WHEN i.type = 'domain constraint' THEN 'CONSTRAINT ' || regexp_replace(i.identity, '^(.*) on ', '\1 ON DOMAIN ')
           WHEN i.type = 'table constraint' THEN 'CONSTRAINT ' || i.identity
           WHEN i.type = 'aggregate' THEN 'ROUTINE ' || i.identity
           WHEN i.type = 'statistics object' THEN 'STATISTICS ' || i.identity
           ELSE upper(i.type) || ' ' || i.identity END
  FROM said d, LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) i
  WHERE d.classoid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_type'::regclass, 'pg_catalog.pg_constraint'::regclass,
      'pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_policy'::regclass, 'pg_catalog.pg_namespace'::regclass, 'pg_catalog.pg_statistic_ext'::regclass)
    AND i.identity !~ '(^| on )(godwit|pg_temp)(\.|$)'
)
SELECT 'option', name, option, value, format('ALTER TABLE %s SET (%s = %L)', name, option, value), format('ALTER TABLE %s RESET (%s)', name, option)
FROM options
UNION ALL
SELECT 'column option', owner, name || ' ' || p.option_name, p.option_value, format('%sSET (%s = %L)', alter, p.option_name, p.option_value),
       format('%sRESET (%s)', alter, p.option_name)
-- Without the stamp of the minor releases of November 2026: each server's own.
FROM columns, pg_catalog.pg_options_to_table(attoptions) p WHERE p.option_name <> 'pg_attver'
UNION ALL
SELECT 'statistics target', owner, name, target::text, format('%sSET STATISTICS %s', alter, target), alter || 'SET STATISTICS -1'
FROM columns WHERE target IS NOT NULL
UNION ALL
SELECT 'storage', owner, name, stored, format('%sSET STORAGE %s', alter, stored), format('%sSET STORAGE %s', alter, usual)
FROM columns WHERE stored <> usual
UNION ALL
SELECT 'compression', owner, name, compression, format('%sSET COMPRESSION %s', alter, compression), alter || 'SET COMPRESSION default'
FROM columns WHERE compression IS NOT NULL
UNION ALL
SELECT 'cluster index', t.name, '', x.relname, format('ALTER TABLE %s CLUSTER ON %I', t.name, x.relname), format('ALTER TABLE %s SET WITHOUT CLUSTER', t.name)
FROM ours t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid AND i.indisclustered JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
UNION ALL
SELECT 'comment', identity, '', description, format('COMMENT ON %s IS %L', what, description), format('COMMENT ON %s IS NULL', what)
FROM described
