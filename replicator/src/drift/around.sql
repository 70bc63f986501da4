-- What stands around the tables and must be alike, too, or the service misses it after a move: as fingerprint.sql. search_path is empty.
-- Not an extension's, and nothing of Godwit's.
WITH ours AS (
  SELECT c.oid, c.relkind, c.relispartition, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity, c.reloptions,
         format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND {{own}}
), schemas AS (
  SELECT n.oid, n.nspname, n.nspacl, n.nspowner FROM pg_catalog.pg_namespace n
  WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
), routines AS (
  SELECT p.*, to_jsonb(p) ->> 'prosqlbody' IS NOT NULL AS is_query, l.lanname,
         -- By the types of its arguments: a name of one may change. An aggregate is called with more.
         CASE WHEN p.prokind <> 'a' THEN p.oid::pg_catalog.regprocedure::text
           ELSE format('%I.%I(%s)', n.nspname, p.proname, coalesce(nullif(pg_catalog.pg_get_function_identity_arguments(p.oid), ''), '*')) END AS name
  FROM pg_catalog.pg_proc p JOIN schemas n ON n.oid = p.pronamespace JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
), aggregates AS (
  SELECT a.aggfnoid::oid AS aggfnoid, concat_ws(', ', format('SFUNC = %s, STYPE = %s', a.aggtransfn, pg_catalog.format_type(a.aggtranstype, NULL)),
    'SSPACE = ' || nullif(a.aggtransspace, 0), 'FINALFUNC = ' || nullif(a.aggfinalfn::text, '-'), CASE WHEN a.aggfinalextra THEN 'FINALFUNC_EXTRA' END,
    CASE WHEN a.aggfinalfn <> 0 THEN 'FINALFUNC_MODIFY = ' || CASE a.aggfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE' ELSE 'READ_WRITE' END END,
    'COMBINEFUNC = ' || nullif(a.aggcombinefn::text, '-'), 'SERIALFUNC = ' || nullif(a.aggserialfn::text, '-'),
    'DESERIALFUNC = ' || nullif(a.aggdeserialfn::text, '-'), 'INITCOND = ' || quote_literal(a.agginitval),
    CASE WHEN a.aggmtransfn <> 0 THEN format('MSFUNC = %s, MINVFUNC = %s, MSTYPE = %s', a.aggmtransfn, a.aggminvtransfn,
      pg_catalog.format_type(a.aggmtranstype, NULL)) END,
    'MSSPACE = ' || nullif(a.aggmtransspace, 0), 'MFINALFUNC = ' || nullif(a.aggmfinalfn::text, '-'), CASE WHEN a.aggmfinalextra THEN 'MFINALFUNC_EXTRA' END,
    CASE WHEN a.aggmfinalfn <> 0 THEN 'MFINALFUNC_MODIFY = ' || CASE a.aggmfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE' ELSE 'READ_WRITE' END END,
    'MINITCOND = ' || quote_literal(a.aggminitval),
    'SORTOP = ' || (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_catalog.pg_operator o
                    JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE o.oid = a.aggsortop),
    CASE a.aggkind WHEN 'h' THEN 'HYPOTHETICAL' END) AS sums
  FROM pg_catalog.pg_aggregate a WHERE a.aggfnoid >= 16384::oid
), types AS (
  -- `typdefault` is worded by the search_path of whoever made it.
  SELECT y.*, format('%I.%I', n.nspname, y.typname) AS name, pg_catalog.pg_get_expr(y.typdefaultbin, 'pg_catalog.pg_type'::regclass) AS value,
         pg_catalog.format_type(y.typbasetype, y.typtypmod) || coalesce((
           SELECT format(' COLLATE %I.%I', cn.nspname, co.collname) FROM pg_catalog.pg_type b JOIN pg_catalog.pg_collation co ON co.oid = y.typcollation
           JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace WHERE b.oid = y.typbasetype AND b.typcollation <> y.typcollation), '') AS base
  FROM pg_catalog.pg_type y JOIN schemas n ON n.oid = y.typnamespace LEFT JOIN pg_catalog.pg_class c ON c.oid = y.typrelid
  WHERE (y.typtype IN ('e', 'd', 'r') OR y.typtype = 'c' AND c.relkind = 'c')
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid AND d.deptype = 'e')
), shaped AS (
  -- Columns of views and composite types.
  SELECT c.oid, string_agg(format('%I %s', a.attname, CASE c.relkind WHEN 'c' THEN {{kind}} ELSE pg_catalog.format_type(a.atttypid, a.atttypmod) END), ', '
           ORDER BY a.attnum) AS columns
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
  LEFT JOIN (pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace) ON co.oid = a.attcollation
  WHERE c.relkind IN ('v', 'm', 'c') AND c.oid >= 16384 GROUP BY c.oid
), views AS (
  SELECT v.*, coalesce(s.columns, '') AS columns, rtrim(pg_catalog.pg_get_viewdef(v.oid), ';') AS query,
         coalesce(' WITH (' || array_to_string(v.reloptions, ', ') || ')', '') AS options
  FROM ours v LEFT JOIN shaped s USING (oid) WHERE v.relkind IN ('v', 'm')
), made AS (
  SELECT oid, relkind, name, query, columns,
         CASE relkind WHEN 'v' THEN format('CREATE OR REPLACE VIEW %s%s AS %s', name, options, query)
           ELSE concat_ws('; ', format('CREATE MATERIALIZED VIEW %s%s AS %s WITH NO DATA', name, options, query),
             (SELECT string_agg(pg_catalog.pg_get_indexdef(i.indexrelid), '; ' ORDER BY i.indexrelid)
              FROM pg_catalog.pg_index i WHERE i.indrelid = views.oid)) END AS sql, options
  FROM views
), counters AS (
  -- From 17 on a partition has no identity column of its own: of one from an older server the sequence is kept, so that it can go back.
  SELECT o.oid, o.name, CASE WHEN d.deptype <> 'i' THEN 'table''s' WHEN t.relispartition THEN 'partition''s' WHEN d.deptype = 'i' THEN 'column''s' END AS whose,
         t.name AS of, pg_catalog.quote_ident(a.attname) AS by, a.attidentity,
         format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s', pg_catalog.format_type(q.seqtypid, NULL),
           q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS counts
  FROM ours o JOIN pg_catalog.pg_sequence q ON q.seqrelid = o.oid
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = o.oid AND d.objsubid = 0
    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
  LEFT JOIN ours t ON t.oid = d.refobjid
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
), granted AS (
  -- By which name it is granted: an aggregate's is that of a function there.
  SELECT 'table' AS kind, name, name AS called, '' AS part, relowner AS owner, relacl AS acl FROM ours WHERE relkind <> 'S'
  UNION ALL
  SELECT 'table', t.name, t.name, format(' (%I)', a.attname), t.relowner, a.attacl
  FROM ours t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped
  UNION ALL
  SELECT 'sequence', name, name, '', relowner, relacl FROM ours WHERE relkind = 'S'
  UNION ALL
  SELECT CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, name, oid::pg_catalog.regprocedure::text, '', proowner,
         coalesce(proacl, pg_catalog.acldefault('f', proowner)) FROM routines
  UNION ALL
  SELECT 'type', name, name, '', typowner, coalesce(typacl, pg_catalog.acldefault('T', typowner)) FROM types
  UNION ALL
  SELECT 'schema', format('%I', nspname), format('%I', nspname), '', nspowner, nspacl FROM schemas WHERE nspname <> 'public'
), rights AS (
  SELECT g.kind, g.name, g.called, x.privilege_type || g.part AS what, x.is_grantable,
         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE format('%I', pg_catalog.pg_get_userbyid(x.grantee)) END AS grantee
  FROM granted g, pg_catalog.aclexplode(g.acl) x
  -- An owner has what its version gives him.
  WHERE x.grantee <> g.owner
)
SELECT 'schema', format('%I', nspname), '', 'present', format('CREATE SCHEMA %I', nspname) FROM schemas
UNION ALL
SELECT 'extension', format('%I', e.extname), '', 'present', format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I', e.extname, n.nspname)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
UNION ALL
SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, name, '', format('(%s)%s', columns, options), sql FROM made WHERE query IS NOT NULL
UNION ALL
SELECT 'query', name, '', query, sql FROM made
UNION ALL
SELECT 'index', t.name, x.relname::text, regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX ("([^"]|"")+"|\S+) ', 'CREATE \1INDEX '),
       pg_catalog.pg_get_indexdef(i.indexrelid)
FROM ours t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE t.relkind = 'm' AND i.indisvalid
UNION ALL
SELECT 'function', name, '', concat_ws(' ', CASE prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' WHEN 'w' THEN 'window' ELSE 'function' END,
         format('(%s)', pg_catalog.pg_get_function_arguments(oid)), 'returns ' || pg_catalog.pg_get_function_result(oid), lanname,
         CASE provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
         CASE WHEN proisstrict THEN 'strict' END, CASE WHEN prosecdef THEN 'security definer' END, CASE WHEN proleakproof THEN 'leakproof' END,
         'parallel ' || proparallel::text, format('cost %s', procost), CASE WHEN proretset THEN format('rows %s', prorows) END,
         array_to_string(proconfig, ', '), probin,
         CASE WHEN prokind = 'a' THEN a.sums WHEN NOT is_query THEN 'body ' || md5(prosrc) END),
       CASE WHEN prokind <> 'a' THEN pg_catalog.pg_get_functiondef(oid)
         ELSE format('CREATE OR REPLACE AGGREGATE %s (%s, PARALLEL = %s)', name, a.sums,
           CASE proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' ELSE 'UNSAFE' END) END
FROM routines LEFT JOIN aggregates a ON a.aggfnoid = routines.oid
UNION ALL
SELECT 'body', name, '', md5(pg_catalog.pg_get_functiondef(oid)), pg_catalog.pg_get_functiondef(oid) FROM routines WHERE is_query AND prokind <> 'a'
UNION ALL
SELECT 'trigger', t.name, g.tgname::text, pg_catalog.pg_get_triggerdef(g.oid)
         || CASE g.tgenabled WHEN 'D' THEN ', disabled' WHEN 'A' THEN ', always' WHEN 'R' THEN ', on replicas' ELSE '' END,
       concat_ws('; ', regexp_replace(pg_catalog.pg_get_triggerdef(g.oid), '^CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER'),
         CASE WHEN t.relkind <> 'v' THEN format('ALTER TABLE %s %s TRIGGER %I', t.name, CASE g.tgenabled WHEN 'D' THEN 'DISABLE'
           WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END, g.tgname) END)
FROM ours t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.oid
WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND g.tgname !~ '^godwit_'
  -- Comes and goes with what only passes.
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                  WHERE p.oid = g.tgfoid AND n.nspname = 'repack' AND p.proname = 'repack_trigger')
UNION ALL
SELECT 'rule', t.name, r.rulename::text, pg_catalog.pg_get_ruledef(r.oid)
         || CASE r.ev_enabled WHEN 'D' THEN ', disabled' WHEN 'A' THEN ', always' WHEN 'R' THEN ', on replicas' ELSE '' END,
       concat_ws('; ', regexp_replace(rtrim(pg_catalog.pg_get_ruledef(r.oid), ';'), '^CREATE RULE', 'CREATE OR REPLACE RULE'),
         CASE WHEN t.relkind IN ('r', 'p') THEN format('ALTER TABLE %s %s RULE %I', t.name, CASE r.ev_enabled WHEN 'D' THEN 'DISABLE'
           WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END, r.rulename) END)
FROM ours t JOIN pg_catalog.pg_rewrite r ON r.ev_class = t.oid WHERE r.rulename <> '_RETURN'
UNION ALL
SELECT 'row security', t.name, '', concat_ws(', ', CASE WHEN relrowsecurity THEN 'enabled' ELSE 'disabled' END, CASE WHEN relforcerowsecurity THEN 'forced' END),
       format('ALTER TABLE %s %s ROW LEVEL SECURITY, %s FORCE ROW LEVEL SECURITY', name,
         CASE WHEN relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END, CASE WHEN relforcerowsecurity THEN '' ELSE 'NO' END)
FROM ours t WHERE t.relkind IN ('r', 'p') AND (relrowsecurity OR relforcerowsecurity)
UNION ALL
SELECT 'policy', t.name, p.polname::text, d.written,
       format('DROP POLICY IF EXISTS %I ON %s; CREATE POLICY %I ON %s %s', p.polname, t.name, p.polname, t.name, d.written)
FROM ours t JOIN pg_catalog.pg_policy p ON p.polrelid = t.oid, LATERAL (
  SELECT concat_ws(' ', 'AS ' || CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
    'FOR ' || CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
    'TO ' || (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE format('%I', pg_catalog.pg_get_userbyid(r)) END, ', ' ORDER BY 1) FROM unnest(p.polroles) r),
    'USING (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', 'WITH CHECK (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')') AS written
) d
UNION ALL
SELECT 'statistics', t.name, s.stxname::text, regexp_replace(pg_catalog.pg_get_statisticsobjdef(s.oid), '^CREATE STATISTICS \S+', 'CREATE STATISTICS'),
       pg_catalog.pg_get_statisticsobjdef(s.oid)
FROM ours t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.oid
UNION ALL
SELECT CASE WHEN of IS NULL THEN 'sequence' ELSE 'its sequence' END, coalesce(of, name), CASE WHEN of IS NULL THEN '' ELSE name END,
       CASE WHEN whose = 'column''s' THEN 'of an identity column ' ELSE '' END || counts,
       -- It may be there, and be nobody's, or another's.
       CASE WHEN of IS NULL THEN format('CREATE SEQUENCE IF NOT EXISTS %s %s; ALTER SEQUENCE %s OWNED BY NONE', name, counts, name)
         WHEN whose = 'column''s' THEN format('ALTER TABLE %s ALTER COLUMN %s ADD GENERATED %s AS IDENTITY (SEQUENCE NAME %s %s)', of, by,
           CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, name, regexp_replace(counts, '^AS \S+( \S+)? (?=INCREMENT)', ''))
         -- A table's sequence has its table's owner: whoever that is over there by then.
         WHEN whose = 'table''s' THEN format('CREATE SEQUENCE IF NOT EXISTS %1$s %2$s; DO %3$L; ALTER SEQUENCE %1$s OWNED BY %4$s.%5$s', name, counts,
           format('BEGIN EXECUTE (SELECT format(''ALTER SEQUENCE %%s OWNER TO %%I'', %L, pg_catalog.pg_get_userbyid(relowner)) '
             'FROM pg_catalog.pg_class WHERE oid = %L::pg_catalog.regclass); END', name, of), of, by) END
FROM counters
UNION ALL
SELECT 'type', y.name, '', CASE y.typtype WHEN 'e' THEN 'enum' WHEN 'c' THEN format('(%s)', s.columns)
         WHEN 'd' THEN concat_ws(' ', 'domain over', y.base, 'DEFAULT ' || y.value,
           CASE WHEN y.typnotnull THEN 'NOT NULL' END)
         ELSE 'range of ' || (SELECT pg_catalog.format_type(r.rngsubtype, NULL) FROM pg_catalog.pg_range r WHERE r.rngtypid = y.oid) END,
       CASE y.typtype WHEN 'e' THEN format('CREATE TYPE %s AS ENUM (%s)', y.name, (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                                                                                  FROM pg_catalog.pg_enum e WHERE e.enumtypid = y.oid))
         WHEN 'c' THEN format('CREATE TYPE %s AS (%s)', y.name, s.columns)
         WHEN 'd' THEN concat_ws(' ', format('CREATE DOMAIN %s AS %s', y.name, y.base),
           'DEFAULT ' || y.value, CASE WHEN y.typnotnull THEN 'NOT NULL' END,
           (SELECT string_agg(format('CONSTRAINT %I ', k.conname) || pg_catalog.pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname)
            -- Those that are NOT VALID are added to it.
            FROM pg_catalog.pg_constraint k WHERE k.contypid = y.oid AND k.contype = 'c' AND k.convalidated))
         -- A canonical function must be made between the type's name and the type.
         WHEN 'r' THEN (SELECT format('CREATE TYPE %s AS RANGE (%s)', y.name, concat_ws(', ', 'SUBTYPE = ' || pg_catalog.format_type(r.rngsubtype, NULL),
             'SUBTYPE_OPCLASS = ' || (SELECT format('%I.%I', n.nspname, o.opcname) FROM pg_catalog.pg_opclass o
                                      JOIN pg_catalog.pg_namespace n ON n.oid = o.opcnamespace WHERE o.oid = r.rngsubopc),
             'COLLATION = ' || (SELECT c.oid::pg_catalog.regcollation FROM pg_catalog.pg_collation c WHERE c.oid = r.rngcollation),
             'SUBTYPE_DIFF = ' || nullif(r.rngsubdiff::text, '-'), 'MULTIRANGE_TYPE_NAME = ' || r.rngmultitypid::pg_catalog.regtype))
           FROM pg_catalog.pg_range r WHERE r.rngtypid = y.oid AND r.rngcanonical = 0) END
FROM types y LEFT JOIN shaped s ON s.oid = y.typrelid
UNION ALL
SELECT '#', y.name, '', y.typrelid || ' 0', NULL FROM types y WHERE y.typtype = 'c'
UNION ALL
SELECT '#', y.name, a.attname::text, y.typrelid || ' ' || a.attnum, NULL
FROM types y JOIN pg_catalog.pg_attribute a ON a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped WHERE y.typtype = 'c'
UNION ALL
SELECT 'domain constraint', y.name, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid),
       format('ALTER DOMAIN %s ADD CONSTRAINT %I %s', y.name, k.conname, pg_catalog.pg_get_constraintdef(k.oid))
FROM types y JOIN pg_catalog.pg_constraint k ON k.contypid = y.oid AND k.contype = 'c'
UNION ALL
SELECT 'owner', name, '', pg_catalog.pg_get_userbyid(relowner)::text,
       format('ALTER %s %s OWNER TO %I', CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END, name,
         pg_catalog.pg_get_userbyid(relowner))
FROM ours WHERE relkind IN ('r', 'p', 'v', 'm')
UNION ALL
SELECT 'owner', name, '', pg_catalog.pg_get_userbyid(proowner)::text,
       format('ALTER %s %s OWNER TO %I', CASE prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END, name, pg_catalog.pg_get_userbyid(proowner))
FROM routines
UNION ALL
SELECT 'owner', format('%I', nspname), '', pg_catalog.pg_get_userbyid(nspowner)::text,
       format('ALTER SCHEMA %I OWNER TO %I', nspname, pg_catalog.pg_get_userbyid(nspowner))
FROM schemas WHERE nspname <> 'public'
UNION ALL
SELECT 'owner', name, '', pg_catalog.pg_get_userbyid(typowner)::text, format('ALTER TYPE %s OWNER TO %I', name, pg_catalog.pg_get_userbyid(typowner))
FROM types
UNION ALL
SELECT 'owner', o.name, '', pg_catalog.pg_get_userbyid(o.relowner)::text,
       format('ALTER SEQUENCE %s OWNER TO %I', o.name, pg_catalog.pg_get_userbyid(o.relowner))
FROM ours o JOIN counters c USING (oid) WHERE c.of IS NULL
UNION ALL
SELECT 'owner', t.name, format('of statistics %s', s.stxname), pg_catalog.pg_get_userbyid(s.stxowner)::text,
       format('ALTER STATISTICS %I.%I OWNER TO %I', n.nspname, s.stxname, pg_catalog.pg_get_userbyid(s.stxowner))
FROM ours t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace
UNION ALL
-- The same may be granted by several.
SELECT 'right on ' || kind, name, format('%s to %s', what, grantee), CASE WHEN bool_or(is_grantable) THEN 'granted with grant option' ELSE 'granted' END,
       format('GRANT %s ON %s %s TO %s%s', what, upper(kind), called, grantee, CASE WHEN bool_or(is_grantable) THEN ' WITH GRANT OPTION' ELSE '' END)
FROM rights GROUP BY kind, name, called, what, grantee
