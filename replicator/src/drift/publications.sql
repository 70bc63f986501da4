-- What others read changes by: publications, but Godwit's own. As fingerprint.sql. From 14 on: what only newer versions have is looked at as JSON.
WITH publications AS (
  SELECT p.oid, format('%I', p.pubname) AS name, p.puballtables, pg_catalog.pg_get_userbyid(p.pubowner)::text AS owner, r.rolsuper,
         concat_ws(', ',
           format('publish = %L', concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
             CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END)),
           'publish_via_partition_root = ' || p.pubviaroot::text,
           CASE WHEN to_jsonb(p) ->> 'pubgencols' = 's' THEN 'publish_generated_columns = stored' END) AS options
  FROM pg_catalog.pg_publication p LEFT JOIN pg_catalog.pg_roles r ON r.oid = p.pubowner
  WHERE p.pubname !~ '^godwit_'
), members AS (
  SELECT p.name, format('%I.%I', n.nspname, c.relname) AS member,
         (SELECT format(' (%s)', string_agg(format('%I', a.attname), ', ' ORDER BY a.attnum))
          FROM pg_catalog.jsonb_array_elements_text(nullif(to_jsonb(r) -> 'prattrs', 'null')) k JOIN pg_catalog.pg_attribute a
            ON a.attrelid = r.prrelid AND a.attnum = k.value::int2 HAVING count(*) > 0) AS columns,
         CASE WHEN to_jsonb(r) ->> 'prqual' IS NOT NULL THEN
           (SELECT ' WHERE (' || (to_jsonb(t) ->> 'rowfilter') || ')' FROM pg_catalog.pg_publication_tables t
            WHERE format('%I', t.pubname) = p.name AND t.schemaname = n.nspname AND t.tablename = c.relname) END AS filter
  FROM publications p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE NOT {{passing}}
), schemas AS (
  -- pg_publication_namespace, which 14 does not have, by what its rows hang on.
  SELECT p.name, format('%I', n.nspname) AS member
  FROM publications p JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_publication'::regclass AND d.refobjid = p.oid
  JOIN pg_catalog.pg_depend s ON s.classid = d.classid AND s.objid = d.objid AND s.refclassid = 'pg_catalog.pg_namespace'::regclass
  JOIN pg_catalog.pg_namespace n ON n.oid = s.refobjid
), listed AS (
  SELECT p.*, nullif(concat_ws(', ',
      (SELECT 'TABLE ' || string_agg(format('ONLY %s%s%s', member, columns, ' WHERE …' || left(filter, 0)), ', ' ORDER BY member, columns) FROM members m WHERE m.name = p.name), s.listed), '') AS plain,
    nullif(concat_ws(', ',
      (SELECT 'TABLE ' || string_agg(format('ONLY %s%s%s', member, columns, filter), ', ' ORDER BY member, columns) FROM members m WHERE m.name = p.name), s.listed), '') AS whole,
    (SELECT string_agg(member || filter, ', ' ORDER BY member) FROM members m WHERE m.name = p.name AND filter IS NOT NULL) AS filters
  FROM publications p, LATERAL (
    SELECT 'TABLES IN SCHEMA ' || string_agg(member, ', ' ORDER BY member) AS listed FROM schemas s WHERE s.name = p.name
  ) s
)
SELECT 'publication', name, '', CASE WHEN puballtables THEN 'for all tables' ELSE 'of what it lists' END,
       format('DROP PUBLICATION IF EXISTS %s; CREATE PUBLICATION %s%s WITH (%s)', name, name,
         CASE WHEN puballtables THEN ' FOR ALL TABLES' ELSE ' FOR ' || whole END, options), NULL::text
FROM listed
UNION ALL
SELECT 'option list', name, '', options, format('ALTER PUBLICATION %s SET (%s)', name, options), NULL FROM listed
UNION ALL
SELECT 'table list', name, '', coalesce(plain, 'none'), format('ALTER PUBLICATION %s SET ', name) || whole, NULL FROM listed WHERE NOT puballtables
UNION ALL
SELECT 'row filter', name, '', coalesce(filters, 'none'), format('ALTER PUBLICATION %s SET ', name) || whole, NULL FROM listed WHERE NOT puballtables
UNION ALL
SELECT 'publication owner', name, '', owner, format('ALTER PUBLICATION %s OWNER TO %I', name, owner), NULL
FROM listed WHERE NOT rolsuper
