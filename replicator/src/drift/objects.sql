-- What is rarer around the tables: collations, text search, operators, casts, triggers that a partition has otherwise than its parent. As around.sql; the last column takes a part of something away.
WITH schemas AS (
  SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
), objects AS (
  SELECT o.class, o.oid, o.kind, format('%I.%I', n.nspname, o.called) AS name, o.owner
  FROM (
    SELECT 'pg_catalog.pg_collation'::regclass AS class, oid, 'collation' AS kind, collname AS called, collnamespace AS schema, collowner AS owner
    FROM pg_catalog.pg_collation
    UNION ALL
    SELECT 'pg_catalog.pg_ts_dict'::regclass, oid, 'text search dictionary', dictname, dictnamespace, dictowner FROM pg_catalog.pg_ts_dict
    UNION ALL
    SELECT 'pg_catalog.pg_ts_config'::regclass, oid, 'text search configuration', cfgname, cfgnamespace, cfgowner FROM pg_catalog.pg_ts_config
  ) o JOIN schemas n ON n.oid = o.schema
  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
), operators AS (
  SELECT p.*, p.oid::pg_catalog.regoperator::text AS name, format('%I.%s', n.nspname, p.oprname) AS called
  FROM pg_catalog.pg_operator p JOIN schemas n ON n.oid = p.oprnamespace
  -- Not what another only speaks of.
  WHERE p.oprcode <> 0
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_operator'::regclass AND d.objid = p.oid AND d.deptype = 'e')
), defined AS (
  -- Newer versions have other columns.
  SELECT o.kind, o.name, concat_ws(', ',
           'provider = ' || CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
           CASE WHEN c.collprovider = 'c' THEN format('lc_collate = %L, lc_ctype = %L', c.collcollate, c.collctype)
             ELSE format('locale = %L', coalesce(n.new ->> 'colllocale', n.new ->> 'colliculocale', c.collcollate::text)) END,
           CASE WHEN NOT c.collisdeterministic THEN 'deterministic = false' END, 'rules = ' || quote_literal(n.new ->> 'collicurules')) AS definition
  FROM objects o JOIN pg_catalog.pg_collation c USING (oid), LATERAL (SELECT to_jsonb(c) AS new) n
  WHERE o.kind = 'collation'
  UNION ALL
  SELECT o.kind, o.name, concat_ws(', ', format('TEMPLATE = %I.%I', tn.nspname, t.tmplname), d.dictinitoption)
  FROM objects o JOIN pg_catalog.pg_ts_dict d USING (oid) JOIN pg_catalog.pg_ts_template t ON t.oid = d.dicttemplate
  JOIN pg_catalog.pg_namespace tn ON tn.oid = t.tmplnamespace
  WHERE o.kind = 'text search dictionary'
  UNION ALL
  SELECT o.kind, o.name, format('PARSER = %I.%I', pn.nspname, p.prsname)
  FROM objects o JOIN pg_catalog.pg_ts_config c USING (oid) JOIN pg_catalog.pg_ts_parser p ON p.oid = c.cfgparser
  JOIN pg_catalog.pg_namespace pn ON pn.oid = p.prsnamespace
  WHERE o.kind = 'text search configuration'
), mapped AS (
  SELECT o.name, t.alias, string_agg(m.mapdict::pg_catalog.regdictionary::text, ', ' ORDER BY m.mapseqno) AS dictionaries
  FROM objects o JOIN pg_catalog.pg_ts_config c USING (oid) JOIN pg_catalog.pg_ts_config_map m ON m.mapcfg = c.oid,
  LATERAL (SELECT format('%I', y.alias) AS alias FROM pg_catalog.ts_token_type(c.cfgparser) y WHERE y.tokid = m.maptokentype) t
  WHERE o.kind = 'text search configuration' GROUP BY o.name, t.alias
), states(of, state, verb) AS (
  VALUES ('O'::"char", 'enabled', 'ENABLE'), ('D', 'disabled', 'DISABLE'), ('A', 'always', 'ENABLE ALWAYS'), ('R', 'on replicas', 'ENABLE REPLICA')
)
SELECT kind, name, '', definition,
       -- A configuration without its mappings finds no words, and who is computed by it would be empty.
       concat_ws('; ', format('CREATE %s %s (%s)', upper(kind), name, definition),
         (SELECT string_agg(format('ALTER TEXT SEARCH CONFIGURATION %s ADD MAPPING FOR %s WITH %s', name, m.alias, m.dictionaries), '; ' ORDER BY m.alias)
          FROM mapped m WHERE kind = 'text search configuration' AND m.name = defined.name)), NULL::text
FROM defined
UNION ALL
SELECT 'mapping', name, alias, dictionaries,
       format('ALTER TEXT SEARCH CONFIGURATION %s DROP MAPPING IF EXISTS FOR %s; ALTER TEXT SEARCH CONFIGURATION %s ADD MAPPING FOR %s WITH %s',
         name, alias, name, alias, dictionaries),
       format('ALTER TEXT SEARCH CONFIGURATION %s DROP MAPPING IF EXISTS FOR %s', name, alias)
FROM mapped
UNION ALL
SELECT 'owner', name, 'of the ' || kind, pg_catalog.pg_get_userbyid(owner)::text,
       format('ALTER %s %s OWNER TO %I', upper(kind), name, pg_catalog.pg_get_userbyid(owner)), NULL
FROM objects
UNION ALL
SELECT 'operator', name, '', d.definition, format('CREATE OPERATOR %s (%s)', called, d.definition), NULL
FROM operators, LATERAL (
  SELECT concat_ws(', ', format('FUNCTION = %s', oprcode), 'LEFTARG = ' || pg_catalog.format_type(nullif(oprleft, 0), NULL),
    'RIGHTARG = ' || pg_catalog.format_type(nullif(oprright, 0), NULL),
    'COMMUTATOR = ' || (SELECT format('OPERATOR(%I.%s)', n.nspname, c.oprname) FROM pg_catalog.pg_operator c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.oprnamespace WHERE c.oid = operators.oprcom),
    'NEGATOR = ' || (SELECT format('OPERATOR(%I.%s)', n.nspname, c.oprname) FROM pg_catalog.pg_operator c
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.oprnamespace WHERE c.oid = operators.oprnegate),
    CASE WHEN oprrest <> 0 THEN format('RESTRICT = %s', oprrest) END, CASE WHEN oprjoin <> 0 THEN format('JOIN = %s', oprjoin) END,
    CASE WHEN oprcanhash THEN 'HASHES' END, CASE WHEN oprcanmerge THEN 'MERGES' END) AS definition
) d
UNION ALL
SELECT 'owner', name, 'of the operator', pg_catalog.pg_get_userbyid(oprowner)::text,
       format('ALTER OPERATOR %s OWNER TO %I', name, pg_catalog.pg_get_userbyid(oprowner)), NULL
FROM operators
UNION ALL
SELECT 'cast', c.name, '', d.definition, format('CREATE CAST %s %s', c.name, d.definition), NULL
FROM (
  SELECT *, format('(%s AS %s)', pg_catalog.format_type(castsource, NULL), pg_catalog.format_type(casttarget, NULL)) AS name
  FROM pg_catalog.pg_cast k
  WHERE k.oid >= 16384
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_cast'::regclass AND d.objid = k.oid AND d.deptype IN ('e', 'i'))
) c, LATERAL (
  SELECT concat_ws(' ', CASE castmethod WHEN 'f' THEN format('WITH FUNCTION %s', castfunc::pg_catalog.regprocedure)
           WHEN 'i' THEN 'WITH INOUT' ELSE 'WITHOUT FUNCTION' END,
         CASE castcontext WHEN 'a' THEN 'AS ASSIGNMENT' WHEN 'i' THEN 'AS IMPLICIT' END) AS definition
) d
UNION ALL
SELECT 'own state of trigger', format('%I.%I', n.nspname, c.relname), g.tgname::text, own.state,
       format('ALTER TABLE ONLY %I.%I %s TRIGGER %I', n.nspname, c.relname, own.verb, g.tgname),
       format('ALTER TABLE ONLY %I.%I %s TRIGGER %I', n.nspname, c.relname, usual.verb, g.tgname)
FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_trigger p ON p.oid = g.tgparentid AND p.tgenabled <> g.tgenabled AND NOT p.tgisinternal
JOIN states own ON own.of = g.tgenabled JOIN states usual ON usual.of = p.tgenabled
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE g.tgname !~ '^godwit_' AND {{own}}
UNION ALL
SELECT 'view default', v.name, v.part, v.value, format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', v.name, v.part, v.value),
       format('ALTER VIEW %s ALTER COLUMN %I DROP DEFAULT', v.name, v.part)
FROM (
  SELECT format('%I.%I', n.nspname, c.relname) AS name, a.attname::text AS part, pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS value
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.adnum
  WHERE c.relkind = 'v' AND {{own}}
) v
UNION ALL
-- The others' are a superuser's affair (doctor).
SELECT 'default privileges', name, '', rights, sql, undo FROM ({{defaults}}) d WHERE mine
